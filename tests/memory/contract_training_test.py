"""What holds for training and decoding with every way of writing a memory."""

import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized

from gradmem_jax import generate
from gradmem_jax.methods import METHODS
from gradmem_jax.training.step import TrainState, make_train_step
from tests.small import VOCAB_SIZE, small_batch, small_params, small_writer

BATCH = small_batch()


@parameterized.named_parameters((name, name) for name in METHODS)
class TrainingContractTest(parameterized.TestCase):
    def test_generate_continues_what_read_predicts(self, name):
        model = small_writer(name)
        params = small_params(model)
        queries = BATCH["query_ids"].copy()
        queries[1, 0, 3:] = 0  # padding
        memory, _ = jax.jit(model.write_memory)(params, BATCH["context_ids"])
        new = np.asarray(generate(model, params, memory, queries, 3))
        self.assertEqual(new.shape, (3, 2, 3))
        longer = np.pad(queries, ((0, 0), (0, 0), (0, 3)))
        for b, r in np.ndindex(3, 2):
            length = int((queries[b, r] != 0).sum())
            longer[b, r, length : length + 3] = new[b, r]
        logits = np.asarray(jax.jit(model.read_memory)(params, memory, longer))
        for b, r in np.ndindex(3, 2):
            length = int((queries[b, r] != 0).sum())
            for t in range(3):
                chosen = logits[b, r, length + t]
                self.assertGreater(new[b, r, t], 0)
                self.assertGreaterEqual(chosen[new[b, r, t]], chosen[1:].max() - 1e-4)

    def test_eight_samples_are_learned_and_every_parameter_with_them(self, name):
        """Each query asks for the token behind one that occurs once in its context."""
        model = small_writer(name, lm={"width": 16})
        rng = np.random.default_rng(0)
        context = np.stack([rng.permutation(np.arange(1, VOCAB_SIZE))[:6] for _ in range(8)])
        asked = rng.integers(5, size=8)
        query = np.stack([context[np.arange(8), asked], context[np.arange(8), asked + 1]], axis=1)
        labels = np.stack([np.full(8, -100), query[:, 1]], axis=1)
        batch = {"context_ids": context, "query_ids": query, "labels": labels}
        params = small_params(model)
        optimizer = optax.adam(1e-2, b2=0.9)
        state = TrainState(np.int32(0), params, jax.jit(optimizer.init)(params))
        step = jax.jit(make_train_step(model, optimizer))
        for _ in range(300):
            state, metrics = step(state, batch)
            if metrics["exact_match"] == 1 and metrics["read_loss"] < 0.1:
                break
        self.assertEqual(metrics["exact_match"], 1, metrics)
        self.assertLess(metrics["read_loss"], 0.1)
        for path, moments in jax.tree.leaves_with_path(state.optimizer_state[0].mu):
            self.assertGreater(np.abs(moments).max(), 0, jax.tree_util.keystr(path))


if __name__ == "__main__":
    absltest.main()
