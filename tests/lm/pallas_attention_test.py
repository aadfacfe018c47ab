"""Fused attention: values and derivatives as plain attention has them; kernels are interpreted."""

import functools
import importlib.util
import re
import unittest
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import Mesh, PartitionSpec, SingleDeviceSharding

import gradmem_jax
from experiments.planning import machines
from gradmem_jax.lm import attention
from gradmem_jax.lm.fused import attention as fused
from gradmem_jax.memory import programs
from gradmem_jax.precision import at_precision
from gradmem_jax.training.step import loss_gradient
from tests.small import small_batch, small_params, small_writer

PLUGINS = {"v5e:2x2": "libtpu", "h200": "jax_cuda12_plugin", "a100-80": "jax_cuda12_plugin"}
BLOCK = 16


def draw(length, dtype=np.float64, width=6, batch_size=1):
    """Query, key and value as kernels take them, with two groups of two heads."""
    rng = np.random.default_rng(0)
    shapes = ((batch_size, 2, 2, length, width), *[(batch_size, 2, length, width)] * 2)
    return tuple(jnp.asarray(rng.standard_normal(shape) / 2, dtype) for shape in shapes)


def plain(query, key, value):
    """Mean and logarithm of the sum, by one array of scores [S, S]."""
    scores = jnp.einsum("bhgsd,bhtd->bhgst", query, key)
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    scores = jnp.where(seen[None, None, None], scores, -jnp.inf)
    log_sum_exp = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    return jnp.einsum("bhgst,bhtd->bhgsd", jnp.exp(scores - log_sum_exp), value), log_sum_exp


def by_kernels_of(machine):
    return functools.partial(fused.causal_attention, block=BLOCK, interpret=machine)


def gradient_of(function):
    def scalar(arrays):
        mean, log_sum_exp = function(*arrays)
        return (jnp.sin(mean).sum() + jnp.square(log_sum_exp).sum()) / 10

    return jax.grad(scalar)


def direction(arrays):
    return jax.tree.map(lambda x: jnp.cos(3 * x), arrays)


def curvature(function, arrays):
    """The gradient, and its derivative in a direction: forward over reverse."""
    return jax.jvp(gradient_of(function), (arrays,), (direction(arrays),))


def tangent(function, arrays):
    """Values and their derivative in a direction: forward mode alone."""
    return jax.jvp(lambda arrays: function(*arrays), (arrays,), (direction(arrays),))


def norm_of_gradient(function, arrays):
    def norm(arrays):
        return sum(jnp.square(x).sum() for x in gradient_of(function)(arrays))

    return jax.grad(norm)(arrays)


def third(function, arrays):
    return jax.jvp(functools.partial(curvature, function), (arrays,), (direction(arrays),))


class PallasAttentionTest(parameterized.TestCase):
    @parameterized.parameters((5, "tpu"), (37, "tpu"), (37, "gpu"))
    def test_values_and_derivatives(self, length, machine):
        self.enter_context(jax.enable_x64(True))
        arrays = draw(length)
        found = jax.jit(functools.partial(curvature, by_kernels_of(machine)))(arrays)
        exact = jax.jit(functools.partial(curvature, plain))(arrays)
        chex.assert_trees_all_close(found, exact, rtol=1e-11, atol=1e-13)

    def test_forward_mode_alone(self):
        self.enter_context(jax.enable_x64(True))
        arrays = draw(20)
        found = jax.jit(functools.partial(tangent, by_kernels_of("tpu")))(arrays)
        exact = jax.jit(functools.partial(tangent, plain))(arrays)
        chex.assert_trees_all_close(found, exact, rtol=1e-11, atol=1e-13)

    @parameterized.named_parameters(
        ("float32", "float32", 3e-6, None),
        ("bfloat16", "bfloat16", 3e-2, "tpu"),
        ("float32_tpu", "float32", 3e-6, "tpu"),
        ("bfloat16_plain", "bfloat16", 3e-2, None),
    )
    @pytest.mark.slow_cases("float32_tpu", "bfloat16_plain")
    def test_rounding(self, dtype, tolerance, machine):
        self.enter_context(jax.enable_x64(True))
        arrays = draw(37, dtype)
        found = jax.jit(functools.partial(curvature, by_kernels_of(machine)))(arrays)
        chex.assert_trees_all_equal_dtypes(found[1], arrays)
        exact = jax.jit(functools.partial(curvature, plain))(
            jax.tree.map(lambda x: x.astype(jnp.float64), arrays)
        )
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            error = np.abs(np.asarray(x, np.float64) - y).max()
            self.assertLess(error, tolerance * np.abs(y).max())

    @parameterized.parameters(norm_of_gradient, third)
    def test_further_derivatives_are_exact_too(self, measure):
        self.enter_context(jax.enable_x64(True))
        arrays = draw(21, width=3)
        found = jax.jit(functools.partial(measure, by_kernels_of(None)))(arrays)
        exact = jax.jit(functools.partial(measure, plain))(arrays)
        chex.assert_trees_all_close(found, exact, rtol=1e-10, atol=1e-12)

    def test_in_parts_on_several_devices(self):
        self.enter_context(jax.enable_x64(True))
        arrays = draw(21, batch_size=4)
        mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
        split = PartitionSpec("data")
        each = jax.vmap(functools.partial(curvature, by_kernels_of("tpu")))
        on_devices = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=(split,), out_specs=split))
        found = on_devices(jax.tree.map(lambda x: x[:, None], arrays))
        exact = jax.jit(functools.partial(curvature, plain))(arrays)
        exact = jax.tree.map(lambda x: x[:, None], exact)
        chex.assert_trees_all_close(found, exact, rtol=1e-11, atol=1e-13)

    @pytest.mark.slow
    @parameterized.parameters("tpu", "gpu")
    def test_training_is_as_with_xla(self, machine):
        self.enter_context(jax.enable_x64(True))
        types = {"dtype": "float64", "param_dtype": "float64"}
        found = {}
        for name in ("xla", "pallas"):
            lm = types | {"attention": name}
            model = small_writer("gradmem", lm=lm, num_write_steps=1)
            params, batch = small_params(model), small_batch(2)
            batch["context_ids"] = np.random.default_rng(0).integers(1, 8, (2, 23))
            with (
                mock.patch.object(programs, "_values_of", lambda _: {}),
                mock.patch.object(attention.fused, "causal_attention", self.counted(machine)),
            ):
                step = jax.jit(functools.partial(loss_gradient, model, num_micro_batches=1))
                found[name] = step(params, batch)
        self.assertGreater(self.calls, 0)
        chex.assert_trees_all_close(found["pallas"], found["xla"], rtol=1e-8, atol=1e-11)

    def counted(self, machine):
        self.calls, kernels = 0, by_kernels_of(machine)

        def causal_attention(query, key, value, block):
            del block
            self.calls += 1
            return kernels(query, key, value)

        return causal_attention

    @parameterized.product(name=[*PLUGINS], types=(("float32", None), ("bfloat16", "highest")))
    def test_kernels_compile(self, name, types):
        dtype, precision = types
        if importlib.util.find_spec(PLUGINS[name]) is None:
            raise unittest.SkipTest(f"{PLUGINS[name]} is not installed: pip install '.[tpu,gpu]'")
        machines.set_up()
        device = machines.open_topology(name).devices[0]
        shapes = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device))
            for x in jax.eval_shape(lambda: draw(200, dtype, 64))
        ]
        step = jax.jit(at_precision(functools.partial(curvature, fused_alone), precision))
        step = step.lower(tuple(shapes))
        options = {} if "v5e" in name else {"xla_gpu_autotune_level": 0}
        text = step.compile(compiler_options=options).as_text()
        target = "tpu_custom_call" if "v5e" in name else "xla.gpu.triton"
        self.assertEqual(text.count(f'{target}"'), 6)

    def test_precision_is_that_of_the_call(self):
        arrays = draw(16, np.float32)

        def called(*arrays):
            with jax.default_matmul_precision("highest"):
                return by_kernels_of("tpu")(*arrays)

        text = jax.jit(lambda *x: jax.vjp(called, *x)[1](called(*x))).lower(*arrays).as_text()
        products = re.findall(r"dot_general.*", text)
        self.assertNotEmpty(products)
        self.assertEqual([x for x in products if "HIGHEST, HIGHEST" not in x], [])

    def test_costs(self):
        query, key, value = jax.eval_shape(lambda: draw(256, np.float32, 64))
        cost = fused.cost("attention_forward", (query, key, value), "tpu")
        pairs, block = 4 * 3, 128
        self.assertEqual(cost.flops, pairs * 2 * 2 * block**2 * 64)
        self.assertEqual(cost.read_again, (pairs - 4) * 2 * block * 64 * 4)
        self.assertIsNone(fused.cost("dot_general", (query, key), "tpu"))


def fused_alone(query, key, value):
    return fused.causal_attention(query, key, value, 64)


class PublicAttentionTest(parameterized.TestCase):
    @parameterized.parameters("auto", "xla", "pallas")
    def test_it_is_what_jax_computes(self, implementation):
        rng = np.random.default_rng(0)
        shapes = ((2, 19, 4, 8), (2, 19, 2, 8), (2, 19, 2, 8))
        arrays = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]
        found = gradmem_jax.attention(*arrays, implementation=implementation)
        expected = jax.nn.dot_product_attention(*arrays, is_causal=True)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
        half = [x.astype(jnp.bfloat16) for x in arrays]
        found = gradmem_jax.attention(*half, implementation=implementation)
        self.assertEqual(found.dtype, jnp.bfloat16)

    @parameterized.parameters(
        ("implementation='cudnn'", (1, 3, 2, 4), (1, 3, 2, 4), jnp.float32, "cudnn"),
        ("must be", (1, 3, 4), (1, 3, 2, 4), jnp.float32, "auto"),
        ("Hkv divides H", (1, 3, 3, 4), (1, 3, 2, 4), jnp.float32, "auto"),
        ("must be", (1, 3, 2, 4), (1, 5, 2, 4), jnp.float32, "auto"),
        ("one floating dtype", (1, 3, 2, 4), (1, 3, 2, 4), jnp.bfloat16, "auto"),
    )
    def test_refusals(self, message, shape, key_shape, dtype, implementation):
        key = jnp.ones(key_shape)
        with self.assertRaisesRegex(ValueError, message):
            gradmem_jax.attention(jnp.ones(shape, dtype), key, key, implementation=implementation)


if __name__ == "__main__":
    absltest.main()
