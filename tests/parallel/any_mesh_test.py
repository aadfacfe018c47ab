"""WRITE, READ, decoding and an outer gradient give one device's numbers on any mesh."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradmem_jax import WriteInfo, generate, reconstruct, write_context
from gradmem_jax.methods import METHODS
from gradmem_jax.parallel import sharding
from tests.small import random_ids, small_model, small_params, small_writer

CONTEXT, QUERIES = random_ids(0, 4, 9), random_ids(1, 4, 2, 4)
CONTEXT[1, 5:] = 0
NUM_DEVICES = 2
ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()
INFO = WriteInfo(PartitionSpec(None, "data"), PartitionSpec(None, "data"), ROWS)
# Others take the same code.
SLOW = ("kv_prefix", "warm_start", "lact", "ttt_linear", "mamba", "mamba2", "gradmem_with_adam")
TRACED = ("rmt", "armt", "full_context")  # a trace says whether axes fit; numbers take a compile
MODELS = {name: functools.partial(small_writer, name) for name in METHODS} | {
    "gradmem_with_adam": functools.partial(small_model, optax.adam(0.1, eps_root=1e-8)),
    "gradmem_with_much_beside": functools.partial(
        small_model,
        learned_write_learning_rate="token",
        lm=dict(scan_layers=True, num_layers=2),
        memory_projection="per_sample",
        meta_gradient="reverse",
        num_control_tokens=1,
        num_write_parts=2,
        write_lora_rank=2,
    ),
}
# The gradients of the others pass the same loops; they would take more time to compile than all.
WITH_GRADIENT = ("gradmem", "gradmem_with_much_beside", "rmt", "armt", "mamba")


def program(name):
    """Parameters of a model, and a function that uses it."""
    model = MODELS[name]()
    params = small_params(model)

    def outer_loss(params, context_ids, query_ids):
        memory, info = model.write_memory(params, context_ids)
        logits = model.read_memory(params, memory, query_ids)
        return jnp.square(logits).mean(), (memory, info, logits)

    def run(params, context_ids, query_ids):
        differentiated = jax.grad(outer_loss, has_aux=True)
        if name not in WITH_GRADIENT:
            differentiated = lambda *args: ({}, outer_loss(*args)[1])
        gradient, results = differentiated(params, context_ids, query_ids)
        return gradient, (*results, generate(model, params, results[0], query_ids, 3))

    return params, run


@functools.cache
def on_one_device(name):
    """What one device makes of a program."""
    params, run = program(name)
    return jax.jit(run)(params, CONTEXT, QUERIES)


def on_explicit_axes(name):
    """A jitted program and its arguments on a mesh whose axes are explicit."""
    params, run = program(name)
    mesh = make_mesh(AxisType.Explicit)
    rows, whole = NamedSharding(mesh, ROWS), NamedSharding(mesh, WHOLE)
    return jax.jit(run), jax.device_put((params, CONTEXT, QUERIES), (whole, rows, rows))


def on_manual_axes(name):
    """A jitted program, each device taking its part of the batch, and its arguments."""
    params, run = program(name)

    def run_part(*args):
        gradient, results = run(*args)  # JAX adds the gradients of what is alike everywhere
        return jax.tree.map(lambda x: x / NUM_DEVICES, gradient), results

    run_parts = jax.shard_map(
        run_part,
        mesh=make_mesh(AxisType.Auto),
        in_specs=(WHOLE, ROWS, ROWS),
        out_specs=(WHOLE, (ROWS, INFO, ROWS, ROWS)),
        check_vma=True,
    )
    return jax.jit(run_parts), (params, CONTEXT, QUERIES)


def make_mesh(axis_type):
    devices = jax.devices()[:NUM_DEVICES]
    return jax.make_mesh((NUM_DEVICES,), ("data",), axis_types=(axis_type,), devices=devices)


def close(got, want):
    chex.assert_trees_all_close(got, want, rtol=2e-4, atol=2e-4)


class AnyMeshTest(parameterized.TestCase):
    @parameterized.named_parameters((name, name) for name in MODELS)
    @pytest.mark.slow_cases(*SLOW, *TRACED)
    def test_explicit_axes(self, name):
        run, args = on_explicit_axes(name)
        got = run(*args)
        close(got, on_one_device(name))
        self.check_where(got)

    @parameterized.named_parameters((name, name) for name in TRACED)
    def test_what_is_where_on_explicit_axes(self, name):
        run, args = on_explicit_axes(name)
        self.check_where(run.trace(*args).out_info)

    def check_where(self, results):
        gradient, (memory, info, logits, answers) = results
        for x in jax.tree.leaves((memory, info.num_steps, logits, answers)):
            self.assertEqual(x.sharding.spec[0], "data")
        for x in jax.tree.leaves(info[:2]):
            self.assertEqual(x.sharding.spec[:2], (None, "data"))
        self.assertTrue(all(x.sharding.is_fully_replicated for x in jax.tree.leaves(gradient)))

    @parameterized.named_parameters((name, name) for name in MODELS)
    @pytest.mark.slow_cases(*SLOW, *TRACED, "gradmem_with_much_beside")
    def test_manual_axes(self, name):
        run, args = on_manual_axes(name)
        close(run(*args), on_one_device(name))

    @parameterized.named_parameters((name, name) for name in (*TRACED, "gradmem_with_much_beside"))
    def test_what_varies_over_manual_axes(self, name):
        run, args = on_manual_axes(name)
        run.trace(*args)  # check_vma refuses what would differ between devices


class ExplicitAxesTest(parameterized.TestCase):
    def test_parameters_in_parts(self):
        model = small_model(lm=dict(num_kv_heads=2))
        params = small_params(model)
        mesh = jax.make_mesh((2, 2, 2), sharding.AXES)
        self.assertEqual(mesh.axis_types, (AxisType.Explicit,) * 3)
        split = sharding.place(params, sharding.shardings(params, mesh))
        self.assertEqual(split["write_head"].sharding.spec, PartitionSpec("fsdp", None))
        context_ids, query_ids = (
            jax.device_put(ids, sharding.batch_sharding(mesh)) for ids in (CONTEXT, QUERIES)
        )

        def loss(params, context_ids, query_ids):
            memory, info = model.write_memory(params, context_ids, num_steps=2)
            return model.read_memory(params, memory, query_ids).var() + info.losses.mean()

        gradient = jax.jit(jax.grad(loss))(split, context_ids, query_ids)
        close(gradient, jax.jit(jax.grad(loss))(params, CONTEXT, QUERIES))
        for got, given in zip(jax.tree.leaves(gradient), jax.tree.leaves(split), strict=True):
            self.assertEqual(got.sharding, given.sharding)

    def test_without_jit(self):
        params, _ = program("gradmem")
        _, (memory, _, _, answers) = on_one_device("gradmem")
        model = MODELS["gradmem"]()
        segments = CONTEXT.reshape(4, 3, 3)
        options = dict(num_steps=np.array([2, 1, 0, 2]), write_learning_rate=0.5)
        want = write_context(model, params, segments, loss_tolerance=0.1, **options)
        mesh = make_mesh(AxisType.Explicit)
        rows = NamedSharding(mesh, ROWS)
        split_params = jax.device_put(params, NamedSharding(mesh, WHOLE))
        split_memory, split_context, segments, options["num_steps"] = jax.device_put(
            (memory, CONTEXT, segments, options["num_steps"]), rows
        )
        got = write_context(model, split_params, segments, loss_tolerance=0.1, **options)
        close(got, want)
        shown = reconstruct(model, split_params, split_memory, split_context)
        close(shown, reconstruct(model, params, memory, CONTEXT))
        with jax.set_mesh(mesh):  # arrays that are not split
            np.testing.assert_array_equal(
                generate(model, params, np.asarray(memory), QUERIES, 3), answers
            )
            close(model.write_memory(params, CONTEXT)[0], memory)


if __name__ == "__main__":
    absltest.main()
