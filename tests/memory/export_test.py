"""WRITE, READ and decoding as `jax.export` makes files of them, and in forward mode anywhere."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax import export

from gradmem_jax import GradMem, generate, write_context
from gradmem_jax.methods import METHODS
from tests.small import random_ids, small_model, small_params, small_parts, small_writer

PLATFORMS = ("cpu", "cuda", "tpu")
SLOW = ("kv_prefix", "warm_start", "lact", "ttt_linear", "mamba")  # others take the same code
MODELS = {name: functools.partial(small_writer, name) for name in METHODS} | {
    "gradmem_with_own_projections": functools.partial(
        small_model, memory_projection="per_sample", lm=dict(scan_layers=True)
    )
}


def arrays(*sizes):
    """Shapes of contexts [B, S] and queries [B, R, Q] of sizes B, S and Q."""
    b, s, q = sizes
    return tuple(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((b, s), (b, 2, q)))


@functools.cache
def exported(name):
    """Parameters of a model, a function that uses it, and what comes back from a file of it."""
    model = MODELS[name]()
    params = small_params(model)

    def run(params, context_ids, query_ids):
        memory, info = model.write_memory(params, context_ids)
        answers = generate(model, params, memory, query_ids, 2)
        return memory, info, model.read_memory(params, memory, query_ids), answers

    sizes = export.symbolic_shape("b, s, q", constraints=["s <= 20", "q <= 6"])
    made = export.export(jax.jit(run), platforms=PLATFORMS)(params, *arrays(*sizes))
    return params, run, export.deserialize(bytearray(made.serialize()))


class ExportTest(parameterized.TestCase):
    @parameterized.named_parameters((name, name) for name in MODELS)
    @pytest.mark.slow_cases(*SLOW)
    def test_open_batch_and_lengths(self, name):
        self.assert_same_numbers(name, 3, 9, 4)

    @parameterized.named_parameters((name, name) for name in MODELS)
    @pytest.mark.slow_cases(*SLOW, "rmt", "armt", "mamba2", "gradmem_with_own_projections")
    def test_one_sample_and_a_query_of_one_token(self, name):
        self.assert_same_numbers(name, 1, 14, 1)

    def assert_same_numbers(self, name, b, s, q):
        params, run, made = exported(name)
        ids = random_ids(b, b, s).astype(np.int32), random_ids(q, b, 2, q).astype(np.int32)
        ids[0][0, 6:] = 0
        got = made.call(params, *ids)
        chex.assert_trees_all_close(got, jax.jit(run)(params, *ids), rtol=1e-3, atol=2e-4)

    def test_open_sizes_of_what_write_is_told(self):
        def weighted(prediction, weights):
            return weights * jax.nn.logsumexp(prediction.logits, axis=-1).mean(axis=-1)

        config = small_model().config
        model = GradMem(config, write_loss=weighted)
        params = small_params(model)

        def write(params, context_ids, num_steps, weights):
            options = dict(max_steps=2, loss_tolerance=weights, loss_data=weights)
            return model.write_memory(params, context_ids, num_steps=num_steps, **options)

        b, s = export.symbolic_shape("b, s", constraints=["s <= 20"])
        shapes = [
            jax.ShapeDtypeStruct(*x)
            for x in (((b, s), jnp.int32), ((b,), jnp.int32), ((b,), jnp.float32))
        ]
        args = random_ids(0, 3, 9), np.array([0, 1, 2]), np.array([0.5, 1.0, 2.0])
        args = [x.astype(shape.dtype) for x, shape in zip(args, shapes, strict=True)]
        got = export.export(jax.jit(write))(params, *shapes).call(params, *args)
        chex.assert_trees_all_close(got, jax.jit(write)(params, *args), rtol=1e-3, atol=2e-4)

    def test_open_sizes_of_drawn_answers(self):
        model = MODELS["gradmem"]()
        params = small_params(model)

        def draw(params, memory, query_ids, seed):
            key = jax.random.key(seed)
            return generate(model, params, memory, query_ids, 3, temperature=1.0, top_k=5, key=key)

        b, r, q = export.symbolic_shape("b, r, q", constraints=["q <= 6"])
        shapes = [((b, 3, 8), jnp.float32), ((b, r, q), jnp.int32), ((), jnp.int32)]
        made = export.export(jax.jit(draw))(params, *(jax.ShapeDtypeStruct(*x) for x in shapes))
        memory = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
        args = params, memory, random_ids(0, 2, 3, 4).astype(np.int32), np.int32(7)
        np.testing.assert_array_equal(made.call(*args), jax.jit(draw)(*args))

    @parameterized.parameters("gradmem", "rmt", "mamba2")
    def test_open_length_of_losses_and_open_number_of_segments(self, name):
        model = MODELS[name]()
        params = small_params(model)

        def run(params, segments):
            memory, _ = write_context(model, params, segments)
            return memory, model.write_token_losses(params, memory, segments[:, 0])

        b, t, s = export.symbolic_shape("b, t, s", constraints=["t >= 2", "s <= 20"])
        made = export.export(jax.jit(run))(params, jax.ShapeDtypeStruct((b, t, s), jnp.int32))
        for segments in (random_ids(0, 2, 3, 9), random_ids(1, 1, 2, 1)):
            want = jax.jit(run)(params, segments.astype(np.int32))
            got = made.call(params, segments.astype(np.int32))
            chex.assert_trees_all_close(got, want, rtol=1e-3, atol=2e-4)

    @parameterized.parameters(
        ("gradmem", "", r"symbolic and may be 1.*constraints=\['t >= 2'\]"),
        ("full_context", "t >= 2", "symbolic, and this memory grows with every segment"),
    )
    def test_an_open_number_of_segments_that_nothing_can_be_made_of(self, name, known, message):
        model = MODELS[name]()
        b, t = export.symbolic_shape("b, t", constraints=[known] if known else [])
        write = export.export(jax.jit(functools.partial(write_context, model)))
        with self.assertRaisesRegex(ValueError, message):
            write(small_params(model), jax.ShapeDtypeStruct((b, t, 3), jnp.int32))

    def test_sizes_that_may_not_fit(self):
        model = small_model()
        shapes = arrays(*export.symbolic_shape("b, s, q"))
        write = export.export(jax.jit(model.write_memory))
        with self.assertRaisesRegex(ValueError, r"s tokens.* 37 .*constraints=\['s <= 37'\]"):
            write(small_params(model), shapes[0])
        write = export.export(jax.jit(small_model(num_write_parts=2).write_memory))
        with self.assertRaisesRegex(ValueError, "batch size b is symbolic.*num_write_parts=2"):
            write(small_params(model), jax.ShapeDtypeStruct((*shapes[0].shape[:1], 9), jnp.int32))


def directional(function, *args):
    """The derivative of a number along the cosines of the arguments, in forward mode."""
    return jax.jvp(function, args, jax.tree.map(jnp.cos, args))[1]


class ForwardModeTest(parameterized.TestCase):
    @parameterized.named_parameters((name, name) for name in METHODS)
    @pytest.mark.slow_cases(*SLOW)
    def test_forward_mode(self, name):
        changes = {"meta_gradient": "reverse"} if hasattr(METHODS[name].config, "clip_norm") else {}
        model = small_writer(name, **changes)
        params = small_params(model)
        context_ids, query_ids = random_ids(0, 3, 9), random_ids(1, 3, 2, 4)
        constant_memory = jax.jit(model.write_memory)(params, context_ids)[0]

        def size(params):
            memory, _ = model.write_memory(params, context_ids)
            read = model.read_memory(params, memory, query_ids)
            return read.var() + model.read_memory(params, constant_memory, query_ids[:, 0]).var()

        def along(scale, params):
            return directional(size, jax.tree.map(lambda x: x * scale, params))

        with small_parts(9):  # on CPU, so each platform has a program of its own
            export.export(jax.jit(along), platforms=PLATFORMS)(1.0, params)
        scales = np.array([1.0, 0.9], np.float32)
        got = jax.jit(jax.vmap(along, (0, None)))(scales, params)
        gradient = jax.jit(jax.grad(size))
        for product, scale in zip(got, scales, strict=True):
            scaled = jax.tree.map(lambda x, scale=scale: x * scale, params)
            pairs = jax.tree.map(lambda g, x: np.vdot(g, np.cos(x)), gradient(scaled), scaled)
            want = sum(jax.tree.leaves(pairs))
            np.testing.assert_allclose(product, want, rtol=2e-3, atol=1e-3)


if __name__ == "__main__":
    absltest.main()
