"""Layouts on eight simulated devices: equal numbers, memory per device, restoring elsewhere."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import NamedSharding, PartitionSpec

from gradmem_jax.methods import METHODS
from gradmem_jax.parallel import sharding
from gradmem_jax.parallel.sharding import MeshConfig, make_mesh
from gradmem_jax.storage import checkpoint
from gradmem_jax.training.optimizer import OptimizerConfig, make_optimizer
from gradmem_jax.training.step import init_state, loss_gradient, make_train_step
from tests.small import (
    random_ids,
    small_batch,
    small_model,
    small_params,
    small_parts,
    small_writer,
)

LM = dict(vocab_size=16, width=16, num_heads=4, num_kv_heads=2, mlp_width=24)
MODEL = small_model(lm=LM, num_write_steps=1, inner_loss_weight=0.5)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip_norm=0.1))
BATCH = small_batch(16)


def first_state(model=MODEL):
    return init_state(small_params(model), OPTIMIZER)


def mesh_of(data, fsdp, tensor):
    return make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])


def step_on(mesh, num_micro_batches=1, frozen=()):
    """A step on a mesh, compiled, and the state it starts from."""
    state = init_state(small_params(MODEL), OPTIMIZER, frozen)
    where = sharding.shardings(state, mesh)
    step = jax.jit(
        make_train_step(MODEL, OPTIMIZER, num_micro_batches, frozen, mesh),
        in_shardings=(where, sharding.batch_sharding(mesh)),
        out_shardings=(where, NamedSharding(mesh, PartitionSpec())),
    )
    return step, sharding.place(state, where)


class FakeSharding:
    """Says which rows the devices of a process hold."""

    def __init__(self, ranges):
        self.ranges = ranges

    def addressable_devices_indices_map(self, shape):
        del shape
        return {i: (slice(*rows),) for i, rows in enumerate(self.ranges)}


class CompilerOptionsTest(parameterized.TestCase):
    def test_cores_as_devices_run_programs_that_are_not_split(self):
        x = jnp.ones((512, 512))
        text = lambda options: (
            jax.jit(lambda x: jnp.sin(x) * 2, compiler_options=options).lower(x).compile().as_text()
        )
        one, eight = (sharding.mesh_compiler_options(mesh_of(n, 1, 1)) for n in (1, 8))
        self.assertIn("outer_dimension_partitions", text(one))
        self.assertNotIn("outer_dimension_partitions", text(eight))


class LayoutTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.want = jax.device_get(jax.jit(make_train_step(MODEL, OPTIMIZER))(first_state(), BATCH))

    @parameterized.parameters(((1, 8, 1), 2), ((2, 2, 2), 1))
    def test_step_equals_that_of_one_device(self, layout, num_micro_batches):
        self.assert_same_step(layout, num_micro_batches)

    @parameterized.parameters(
        ((8, 1, 1), 2),
        ((4, 2, 1), 1),
        ((1, 1, 2), 4),
        ((1, 1, 8), 1),
        ((4, 1, 2), 2),
        ((1, 2, 4), 1),
    )
    @pytest.mark.slow
    def test_more_layouts(self, layout, num_micro_batches):
        self.assert_same_step(layout, num_micro_batches)

    def assert_same_step(self, layout, num_micro_batches):
        mesh = mesh_of(*layout)
        step, state = step_on(mesh, num_micro_batches)
        new_state, metrics = step(state, sharding.place(BATCH, sharding.batch_sharding(mesh)))
        want_state, want_metrics = self.want
        chex.assert_trees_all_close(jax.device_get(metrics), want_metrics, rtol=1e-4, atol=1e-6)
        # Adam turns tiny gradients into full steps, so that moments say more than parameters.
        for tree in ("optimizer_state", "params"):
            chex.assert_trees_all_close(
                jax.device_get(getattr(new_state, tree)),
                getattr(want_state, tree),
                rtol=1e-3,
                atol=1e-6 if tree == "optimizer_state" else 1e-3,
            )
        same = jax.tree.map(lambda x, y: x.sharding == y.sharding, new_state, state)
        self.assertTrue(all(jax.tree.leaves(same)))

    @parameterized.parameters(
        ((1, 8, 1), {}, (), 1),
        ((2, 2, 2), {"scan_layers": True, "remat": "full"}, (), 2),
        ((1, 4, 1), {"scan_layers": True}, ("^lm/",), 1),
    )
    def test_layers_that_gather_their_own_parameters(self, layout, lm, frozen, steps):
        self.enter_context(jax.enable_x64(True))
        types = {"dtype": "float64", "param_dtype": "float64"}
        mesh, lm = mesh_of(*layout), LM | types | lm
        model = small_model(lm=lm, write_lora_rank=2, num_write_steps=steps)
        params, batch = small_params(model), small_batch(16)
        want = jax.jit(lambda p, b: loss_gradient(model, p, b, 1, frozen))(params, batch)
        lm |= {"gather": "layer"}
        model = small_model(lm=lm, write_lora_rank=2, num_write_steps=steps)
        where = sharding.shardings(params, mesh)
        gradient = jax.jit(lambda p, b: loss_gradient(model, p, b, 2, frozen, mesh=mesh))
        args = sharding.place(params, where), sharding.place(batch, sharding.batch_sharding(mesh))
        got = gradient(*args)
        chex.assert_trees_all_close(jax.device_get(got), jax.device_get(want), rtol=1e-6, atol=1e-9)
        split = [x for x in jax.tree.leaves(got[0]) if not x.sharding.is_fully_replicated]
        self.assertNotEmpty(split)

    def test_parts_of_a_write_lie_on_all_devices(self):
        mesh, ids = mesh_of(8, 1, 1), random_ids(0, 16, 9)
        rows = sharding.batch_sharding(mesh)
        write = jax.jit(lambda params, ids: MODEL.write_memory(params, ids)[0], out_shardings=rows)
        params = small_params(MODEL)
        want = np.asarray(MODEL.write_memory(params, ids)[0])
        with small_parts(9):
            compiled = write.lower(params, sharding.place(ids, rows)).compile()
        got = compiled(params, sharding.place(ids, rows))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        program = compiled.as_text()
        self.assertIn("while", program)
        for exchange in ("all-gather", "all-to-all", "collective-permute"):
            self.assertNotIn(exchange, program)

    def test_muon_on_split_matrices(self):
        optimizer = make_optimizer(OptimizerConfig("muon", learning_rate=0.1, warmup_steps=0))
        layer = small_params(MODEL)["lm"]["layers_0"]
        attention = {name: layer["attention"][name] for name in ("query", "output")}
        params = {"lm": {"layers_0": {"attention": attention, "down": layer["down"]}}}
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        want, _ = update(params, state, params)
        split = lambda tree: sharding.place(tree, sharding.shardings(tree, mesh_of(2, 2, 2)))
        placed = split(params)
        for x in jax.tree.leaves(placed):
            self.assertFalse(x.sharding.is_fully_replicated)
        got, _ = update(placed, split(state), placed)
        chex.assert_trees_all_close(jax.device_get(got), want, rtol=1e-3, atol=1e-3)

    def test_frozen_parameters(self):
        step, state = step_on(mesh_of(1, 4, 1), frozen=("^lm/",))
        new_state, metrics = step(state, BATCH)
        np.testing.assert_allclose(metrics["loss"], self.want[1]["loss"], rtol=1e-5)
        chex.assert_trees_all_equal(new_state.params["lm"], state.params["lm"])
        self.assertGreater(
            np.abs(new_state.params["write_head"] - state.params["write_head"]).max(), 0.01
        )

    @parameterized.parameters(*METHODS)
    def test_every_matrix_is_split(self, name):
        lm = dict(width=16, num_heads=2, mlp_width=16, scan_layers=name == "gradmem")
        model = small_writer(name, lm=lm)
        params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
        specs = sharding.partition(params, mesh_of(1, 4, 2))
        small = ("conv_kernel", "A_log", "initial_memory", "start", "end", "norm", "bias", "tokens")
        for path, spec in jax.tree.leaves_with_path(specs):
            text = jax.tree_util.keystr(path)
            x = params
            for key in path:
                x = x[key.key]
            if x.ndim - ("'layers'" in text) >= 2 and not any(name in text for name in small):
                self.assertIn("fsdp", tuple(spec), text)

    def test_tensor_axis_splits_heads_mlp_and_vocabulary(self):
        specs = sharding.partition(first_state().params, mesh_of(2, 2, 2))
        self.assertEqual(specs["lm"]["embedding"], PartitionSpec("tensor", "fsdp"))
        layer = specs["lm"]["layers_0"]
        self.assertEqual(layer["attention"]["key"]["kernel"], PartitionSpec("fsdp", "tensor", None))
        self.assertEqual(layer["down"]["kernel"], PartitionSpec("tensor", "fsdp"))
        self.assertEqual(layer["mlp_norm"]["scale"], PartitionSpec(None))

    def test_what_does_not_divide_stays_whole_and_is_named(self):
        mesh = mesh_of(1, 1, 8)
        params = first_state().params
        spec = sharding.partition(params, mesh)["lm"]["layers_0"]["attention"]["key"]["kernel"]
        self.assertEqual(spec, PartitionSpec(None, None, None))
        self.assertIn(
            "heads of lm/layers_0/attention/key/kernel, 2 by tensor=8",
            sharding.undivided(params, mesh),
        )
        self.assertEmpty(sharding.undivided(params, mesh_of(2, 2, 2)))

    def test_a_device_holds_its_fraction_of_parameters_and_optimizer_state(self):
        model = small_model(lm=dict(LM, vocab_size=64, width=128, mlp_width=256))
        state = first_state(model)
        placed = sharding.place(state, sharding.shardings(state, mesh_of(1, 8, 1)))
        size = lambda x: x.nbytes
        held = lambda x: x.addressable_shards[5].data.nbytes
        for tree in (placed.params, placed.optimizer_state):
            total = sum(map(size, jax.tree.leaves(tree)))
            self.assertLess(sum(map(held, jax.tree.leaves(tree))), 1.05 * total / 8)
        chex.assert_trees_all_equal(jax.device_get(placed), jax.device_get(state))


class MeshTest(parameterized.TestCase):
    def test_one_axis_takes_what_is_left(self):
        self.assertEqual(dict(make_mesh(MeshConfig()).shape), dict(data=8, fsdp=1, tensor=1))
        mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
        self.assertEqual(dict(mesh.shape), dict(data=2, fsdp=2, tensor=2))

    @parameterized.parameters(
        (dict(data=0), "mesh.data=0 must be a number of devices, or -1"),
        (dict(fsdp=-2), "mesh.fsdp=-2"),
        (dict(fsdp=-1), "mesh.data and mesh.fsdp are -1; only one"),
        (dict(tensor=3), "8 devices are no multiple of 3"),
        (dict(data=2, fsdp=2), "takes 4 devices, there are 8; set one axis to -1"),
        (dict(data="all"), "data"),
    )
    def test_refusals(self, fields, message):
        with self.assertRaisesRegex(ValueError, message):
            make_mesh(MeshConfig(**fields))

    def test_one_process_feeds_the_whole_batch(self):
        rows = sharding.batch_sharding(make_mesh(MeshConfig(fsdp=2, tensor=2)))
        self.assertEqual(sharding.process_shard(rows, 16), (0, 1))

    @parameterized.parameters(
        ([(4, 8)], (1, 4)), ([(8, 12), (12, 16)], (1, 2)), ([(0, 16), (0, 16)], (0, 1))
    )
    def test_part_of_one_of_several_processes(self, ranges, want):
        self.assertEqual(sharding.process_shard(FakeSharding(ranges), 16), want)

    @parameterized.parameters([[(0, 4), (8, 12)]], [[(4, 8), (8, 12)]])
    def test_a_process_must_feed_neighbours(self, ranges):
        with self.assertRaisesRegex(ValueError, "not one part of it; choose mesh axes"):
            sharding.process_shard(FakeSharding(ranges), 16)


class RestoreTest(parameterized.TestCase):
    @parameterized.parameters(
        ((1, 8, 1), (2, 2, 2)), ((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (1, 3, 1))
    )
    def test_another_layout_or_number_of_devices_bit_for_bit(self, before, after):
        folder = pathlib.Path(self.create_tempdir().full_path) / "checkpoints"
        state = first_state()._replace(step=jnp.int32(7))
        place = lambda layout: sharding.place(state, sharding.shardings(state, mesh_of(*layout)))
        with checkpoint.open_checkpoints(folder) as checkpoints:
            checkpoint.save(checkpoints, 7, place(before), {"iterator": 3}, {"score": 0.5})
        template = jax.tree.map(jnp.zeros_like, place(after))
        template = sharding.place(template, jax.tree.map(lambda x: x.sharding, place(after)))
        with checkpoint.open_checkpoints(folder) as checkpoints:
            restored, run = checkpoint.restore_latest(checkpoints, template)
        chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
        self.assertEqual(run, {"iterator": 3})
        same = jax.tree.map(lambda x, y: x.sharding == y.sharding, restored, template)
        self.assertTrue(all(jax.tree.leaves(same)))
        mesh = mesh_of(*after)
        _, params = checkpoint.restore_params(folder, mesh=mesh)
        chex.assert_trees_all_equal(jax.device_get(params), jax.device_get(state.params))
        self.assertEqual(
            params["lm"]["head"].sharding, sharding.shardings(state.params, mesh)["lm"]["head"]
        )


if __name__ == "__main__":
    absltest.main()
