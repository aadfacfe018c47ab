"""RMT: properties, options and errors; its numbers are compared in parity_test.py."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import RMTConfig, generate
from gradmem_jax.training.losses import loss_and_metrics
from tests.small import random_ids, small_batch, small_params, small_rmt, small_writer

MODEL = small_rmt(
    memory_projection="proj_rw", memory_residual=True, num_control_tokens=1, inner_loss_weight=0.5
)
PARAMS = small_params(MODEL)
CONTEXT = random_ids(0, 4, 9)
write = jax.jit(MODEL.write_memory, static_argnames=("num_steps", "max_steps"))
write_traced = jax.jit(MODEL.write_memory, static_argnames="max_steps")


def close(got, want):
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


@functools.cache
def written():
    return jax.device_get(write(PARAMS, CONTEXT))


class RMTTest(parameterized.TestCase):
    def test_shapes(self):
        memory, info = written()
        chex.assert_shape(memory, (4, 3, 8))
        chex.assert_shape(info.losses, (3, 4))
        np.testing.assert_array_equal(info.num_steps, 2)
        self.assertEqual(info.gradient_norms, ())

    def test_losses_are_those_of_the_memories_between_passes(self):
        info = written()[1]
        for k in range(3):
            memory, _ = write(PARAMS, CONTEXT, num_steps=k)
            losses = MODEL.write_token_losses(PARAMS, memory, CONTEXT)
            close(info.losses[k], losses.mean(axis=1))
        close(MODEL.outer_write_loss(info), info.losses[1:].mean(axis=0))

    def test_sample_is_independent_of_its_batch_and_of_padding(self):
        memory, info = written()
        padded = np.pad(CONTEXT[[2, 0]], ((0, 0), (0, 5)))
        got, got_info = write(PARAMS, padded)
        close(got, memory[np.array([2, 0])])
        close(got_info.losses, info.losses[:, np.array([2, 0])])

    def test_no_steps_return_the_initial_memory(self):
        memory, _ = write(PARAMS, CONTEXT, num_steps=0)
        close(memory, np.broadcast_to(PARAMS["initial_memory"], memory.shape))

    def test_traced_number_of_steps_and_writing_on(self):
        want, want_info = write(PARAMS, CONTEXT, num_steps=3)
        got, info = write_traced(PARAMS, CONTEXT, num_steps=jnp.int32(3), max_steps=4)
        close(got, want)
        close(MODEL.outer_write_loss(info), MODEL.outer_write_loss(want_info))
        on, _ = jax.jit(lambda m: MODEL.write_memory(PARAMS, CONTEXT, memory=m, num_steps=1))(
            written()[0]
        )
        close(on, want)

    def test_generate(self):
        memory, _ = written()
        query = random_ids(1, 4, 5)
        first = generate(MODEL, PARAMS, memory, query, 2)[:, 0]
        logits = jax.jit(MODEL.read_memory)(PARAMS, memory, query)
        np.testing.assert_array_equal(first, logits[:, -1].argmax(-1))

    def test_every_parameter_is_trained(self):
        model = small_rmt(
            memory_projection="proj_rw",
            memory_residual=True,
            num_control_tokens=1,
            inner_loss_weight=0.5,
            write_head=True,
        )
        params = small_params(model)
        loss = lambda params: loss_and_metrics(model, params, small_batch())
        gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(params)
        for path, leaf in jax.tree.leaves_with_path(gradient):
            self.assertGreater(np.abs(leaf).max(), 0, path)
        close(metrics["loss"], metrics["read_loss"] + 0.5 * metrics["write_loss"])

    def test_refusals(self):
        with self.assertRaisesRegex(ValueError, "memory_projection='per_sample'"):
            RMTConfig(lm=MODEL.config.lm, memory_projection="per_sample")
        with self.assertRaisesRegex(ValueError, "Shorten it to 31"):
            MODEL.write_memory(PARAMS, random_ids(0, 1, 32))

    def test_a_warm_start_is_rmt_through_the_same_projection(self):
        model = small_writer("warm_start", memory_projection="proj", num_write_steps=0)
        params = small_params(model)
        same = dict(num_write_steps=1, write_head=True, lm=dict(num_kv_heads=2))
        rmt = small_rmt(memory_projection="proj", **same)
        want, _ = jax.jit(rmt.write_memory)(params, CONTEXT)
        close(jax.jit(model.write_memory)(params, CONTEXT)[0], want)


if __name__ == "__main__":
    absltest.main()
