"""The view of WRITE predicts what the WRITE loss says; contexts are read back through it."""

import functools

import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized

from gradmem_jax import reconstruct
from gradmem_jax.losses import token_losses
from tests.small import small_batch, small_model, small_params, small_rmt, small_writer

CONTEXT = small_batch()["context_ids"]
LABELS = np.where(CONTEXT == 0, -100, CONTEXT)


def written(model, seed=0):
    params = small_params(model, seed)
    write = jax.jit(functools.partial(model.write_memory, num_steps=1))
    return params, write(params, CONTEXT)[0]


VIEWS = {
    name: functools.partial(small_writer, name) for name in ("gradmem", "kv_prefix", "mamba")
} | {
    "tied": lambda: small_model(lm={"tied_head": True}),
    "no_write_head": lambda: small_model(write_head=False),
    "control": lambda: small_model(num_control_tokens=2, memory_projection="per_sample"),
    "adapters": lambda: small_model(
        write_lora_rank=2, write_lora_targets=("query", "up"), write_lora_dropout=0.1
    ),
    "rmt_projections": lambda: small_rmt(
        memory_projection="proj_rw", write_head=True, num_control_tokens=1
    ),
    "rmt_projection": lambda: small_rmt(memory_projection="proj"),
}


class ReconstructionTest(parameterized.TestCase):
    @parameterized.named_parameters(VIEWS.items())
    def test_view_of_write_has_the_write_loss(self, make):
        model = make()
        params, memory = written(model)
        view, seen = model.write_view(params)
        logits = jax.jit(view.read_memory)(seen, memory, CONTEXT)
        want = jax.jit(model.write_token_losses)(params, memory, CONTEXT)
        np.testing.assert_allclose(token_losses(logits[:, :-1], LABELS), want, rtol=1e-5, atol=1e-5)

    def test_greedy_decoding_is_that_of_the_write_logits(self):
        model = small_model(num_control_tokens=1)
        params, memory = written(model)
        found = reconstruct(model, params, memory, CONTEXT)
        view, seen = model.write_view(params)
        read = jax.jit(view.read_memory)
        ids = np.zeros_like(CONTEXT)
        for i in range(CONTEXT.shape[1]):
            ids[:, i] = np.asarray(read(seen, memory, ids))[:, i].argmax(-1)
        real = CONTEXT != 0
        np.testing.assert_array_equal(found.ids, ids * real)
        np.testing.assert_allclose(
            found.accuracy, ((ids == CONTEXT) & real).sum(1) / real.sum(1), rtol=1e-6
        )
        likely = np.asarray(read(seen, memory, CONTEXT))[:, :-1].argmax(-1)
        np.testing.assert_allclose(
            found.token_accuracy, ((likely == CONTEXT) & real).sum(1) / real.sum(1), rtol=1e-6
        )

    def test_many_steps_bring_the_context_back(self):
        lm = {"width": 32, "num_layers": 2, "mlp_width": 32}
        model = small_model(optax.adam(0.1), write_head=False, num_memory_tokens=8, lm=lm)
        params = small_params(model)
        ids = CONTEXT[:, :5]
        memory, _ = jax.jit(functools.partial(model.write_memory, num_steps=100))(params, ids)
        before = reconstruct(model, params, model.initial_memory(params, 3), ids)
        after = reconstruct(model, params, memory, ids)
        np.testing.assert_array_equal(after.ids, ids)
        np.testing.assert_array_equal(after.accuracy, 1)
        np.testing.assert_array_equal(after.token_accuracy, 1)
        self.assertLess(before.accuracy.max(), 1)

    def test_context_that_fills_the_positions(self):
        model = small_model(lm={"max_positions": 12})
        params, memory = written(model)
        found = reconstruct(model, params, memory, CONTEXT)
        self.assertEqual(found.ids.shape, CONTEXT.shape)
        np.testing.assert_array_equal(found.ids[:, -1], 0)

    def test_refuses_another_batch(self):
        model = small_model()
        params, memory = written(model)
        with self.assertRaisesRegex(ValueError, "need"):
            reconstruct(model, params, memory, CONTEXT[:2])


if __name__ == "__main__":
    absltest.main()
