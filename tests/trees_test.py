"""Frozen parameters: they stay as they are, and cost neither gradient nor optimizer state."""

import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized
from flax.traverse_util import flatten_dict

from gradmem_jax.training.step import TrainState, init_state, loss_gradient, make_train_step
from gradmem_jax.trees import join_params, split_params
from tests.small import small_batch, small_params, small_rmt

MODEL = small_rmt(num_write_steps=1, write_lora_rank=2, memory_projection="proj")
PARAMS = small_params(MODEL)


class FreezingTest(parameterized.TestCase):
    @parameterized.parameters(
        ((), set(PARAMS), set()),
        (("/bias$",), set(PARAMS), {"projection"}),
        (("^lm/",), {"initial_memory", "projection", "write_lora"}, {"lm"}),
        (("^lm/", "projection/bias"), {"initial_memory", "projection", "write_lora"}, None),
    )
    def test_split_and_join(self, frozen, trained_names, frozen_names):
        trained, constant = split_params(PARAMS, frozen)
        self.assertEqual(set(trained), trained_names)
        if frozen_names is not None:
            self.assertEqual(set(constant), frozen_names)
        else:
            self.assertEqual(set(trained["projection"]), {"kernel"})
        jax.tree.map(np.testing.assert_array_equal, join_params(trained, constant), PARAMS)

    def test_gradient_and_step(self):
        frozen, batch = ("^lm/",), small_batch(4)
        all_of_it, _ = jax.jit(lambda p: loss_gradient(MODEL, p, batch))(PARAMS)
        part, _ = jax.jit(lambda p: loss_gradient(MODEL, p, batch, 2, frozen))(PARAMS)
        self.assertNotIn("lm", part)
        for name, want in part.items():
            for a, b in zip(jax.tree.leaves(all_of_it[name]), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

        optimizer = optax.adam(1e-2)
        state = TrainState(np.int32(0), PARAMS, optimizer.init(split_params(PARAMS, frozen)[0]))
        new, _ = jax.jit(make_train_step(MODEL, optimizer, frozen=frozen))(state, batch)
        moved = {
            path[0]: not np.array_equal(x, flatten_dict(PARAMS)[path])
            for path, x in flatten_dict(new.params).items()
        }
        self.assertEqual(
            moved, {"lm": False, "initial_memory": True, "projection": True, "write_lora": True}
        )

    def test_optimizer_state_is_of_trained_parameters_only(self):
        make = lambda frozen: init_state(MODEL.init(jax.random.key(0)), optax.adam(1.0), frozen)
        state = jax.eval_shape(lambda: make(("^lm/",)))
        trained = {name: x for name, x in state.params.items() if name != "lm"}
        self.assertEqual(
            jax.tree.structure(state.optimizer_state[0].mu), jax.tree.structure(trained)
        )

    @parameterized.parameters(
        (("^llm/",), "frozen '.llm/' matches no parameter; they are .*'initial_memory'"),
        (("(",), "is no regular expression"),
        (("",), "leaves no parameter to train"),
        ("proj", r"frozen='proj' is one text; give a tuple of expressions, frozen=\('proj',\)"),
    )
    def test_refusals(self, frozen, message):
        with self.assertRaisesRegex(ValueError, message):
            split_params(PARAMS, frozen)


if __name__ == "__main__":
    absltest.main()
