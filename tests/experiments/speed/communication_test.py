"""Bytes between devices, read from programs, and weak scaling."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec

from experiments.speed import projection
from experiments.speed.communication import sent_bytes
from gradmem_jax.parallel import sharding
from gradmem_jax.training.step import loss_gradient
from tests.small import small_batch, small_model, small_params

MESH = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))


def sent_by(fn, *args):
    """What a function of one device sends, its arguments split along fsdp."""
    spec = PartitionSpec("fsdp")
    mapped = jax.shard_map(fn, mesh=MESH, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)
    return sent_bytes(jax.jit(mapped).lower(*args).compile().as_text())


class SentBytesTest(parameterized.TestCase):
    def test_of_each_kind(self):
        x = jnp.ones((16, 8), jnp.float32)  # a device has 4 x 8, 128 bytes
        self.assertEqual(sent_by(lambda x: jax.lax.psum(x, "fsdp"), x), {"all-reduce": 192})
        gather = lambda x: jax.lax.all_gather(x, "fsdp", tiled=True)
        self.assertEqual(sent_by(gather, x), {"all-gather": 384})
        scatter = lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True)
        self.assertEqual(sent_by(scatter, x), {"reduce-scatter": 96})
        both = lambda x: jax.lax.psum(x.astype(jnp.bfloat16).sum(), ("data", "fsdp"))
        self.assertIn(sent_by(both, x)["all-reduce"], (2 * 2 * 7 / 8, 4 * 2 * 7 / 8))

    def test_in_a_loop(self):
        def fn(x):
            body = lambda carry, _: (jax.lax.psum(carry, "fsdp") * 0.5, None)
            return jax.lax.scan(body, x, None, length=5)[0]

        self.assertEqual(sent_by(fn, jnp.ones((16, 8))), {"all-reduce": 5 * 192})

    def test_in_a_loop_of_unknown_length(self):
        fn = lambda x: jax.lax.while_loop(
            lambda x: x.sum() < 9, lambda x: jax.lax.psum(x, "fsdp"), x
        )
        with self.assertRaisesRegex(ValueError, "no known length"):
            sent_by(fn, jnp.ones((16, 8)))

    def test_asynchronous_ones_are_refused(self):
        text = "ENTRY %m (x: f32[2]) -> f32[2] {\n  %a = f32[2] all-reduce-start(%x)\n}"
        with self.assertRaisesRegex(ValueError, "asynchronous"):
            sent_bytes(text)

    def test_of_a_step_depends_on_neither_write_steps_nor_micro_batches(self):
        lm = dict(width=16, vocab_size=16, mlp_width=16, num_heads=4, num_kv_heads=4)
        volumes = []
        for num_write_steps, num_micro_batches in ((1, 1), (3, 2)):
            model = small_model(lm=lm, num_write_steps=num_write_steps)
            params = small_params(model)
            where = sharding.shardings(params, MESH)
            gradient = jax.jit(
                lambda params, batch, model=model, n=num_micro_batches: loss_gradient(
                    model, params, batch, n, mesh=MESH
                ),
                in_shardings=(where, sharding.batch_sharding(MESH)),
                out_shardings=(where, None),
            )
            text = gradient.lower(params, small_batch(16)).compile().as_text()
            volumes.append(sent_bytes(text))
        metrics = [volume.pop("all-reduce") for volume in volumes]
        self.assertAlmostEqual(*metrics, delta=64)  # each WRITE step has the norm of its gradient
        self.assertEqual(*volumes)
        specs = jax.tree.leaves(sharding.partition(params, MESH))
        leaves = zip(jax.tree.leaves(params), specs, strict=True)
        split = sum(x.nbytes for x, spec in leaves if "fsdp" in tuple(spec))
        self.assertEqual(volumes[0]["all-gather"], split * 3 / 4)
        self.assertEqual(volumes[0]["reduce-scatter"], split * 3 / 4)


class ProjectionTest(parameterized.TestCase):
    def test_by_hand(self):
        chip = projection.Chip(flops=100.0, utilization=0.5, bandwidth=10.0)
        got = projection.project(40.0, 400.0, 4, chip, latency=0.25)
        self.assertEqual(got["compute_seconds"], 8.0)
        self.assertEqual(got["communication_seconds"], 6.0 + 1.5)
        np.testing.assert_allclose(got["efficiency_nothing_hidden"], 8 / 15.5)
        self.assertEqual(got["efficiency_all_hidden"], 1.0)

    def test_step_flops(self):
        self.assertEqual(projection.step_flops(10, 2, 5, 3, 2), 2 * 10 * 2 * ((8 + 6) * 5 + 9))
        self.assertEqual(projection.step_flops(10, 2, 5, 3, 4), 2 * 10 * 2 * (8 * 4 * 5 + 9))


if __name__ == "__main__":
    absltest.main()
