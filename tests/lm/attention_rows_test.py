"""Attention of long contexts, some queries after the others: as all at once, derivatives too."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.lm import attention

METHODS = ("auto", "xla")
B, H, KV, D = 2, 4, 2, 6


def draw(length, dtype=np.float64, cached=0):
    rng = np.random.default_rng(0)
    shapes = {
        "query": (B, length, H, D),
        "key": (B, length, KV, D),
        "value": (B, length, KV, D),
        "cached_key": (B, KV, cached, D),
        "cached_value": (B, KV, cached, D),
    }
    return {name: jnp.asarray(rng.standard_normal(s), dtype) for name, s in shapes.items()}


def attend(arrays, by_position=None, cache_mask=None, method="xla"):
    cached = (arrays["cached_key"], arrays["cached_value"])
    found = attention.attend(
        arrays["query"],
        arrays["key"],
        arrays["value"],
        cached=cached if cached[0].shape[2] else None,
        cache_mask=cache_mask,
        by_position=by_position,
        method=method,
    )
    return found.mean, found.log_sum_exp


def scalar(arrays, **options):
    mean, log_sum_exp = attend(arrays, **options)
    return (jnp.sin(mean).sum() + jnp.square(log_sum_exp).sum()) / 10


def curvature(arrays, **options):
    """The gradient and its derivative in a direction: forward over reverse, as in WRITE."""
    direction = jax.tree.map(lambda x: jnp.cos(3 * x), arrays)
    return jax.jvp(jax.grad(functools.partial(scalar, **options)), (arrays,), (direction,))


class AttentionRowsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(jax.enable_x64(True))

    def by_rows(self, size, call):
        with mock.patch.multiple(
            attention,
            LARGEST_SAVED=0,
            query_rows=lambda *_: size,
            block_size=lambda *_: size,
        ):
            return call()

    @parameterized.product(case=((1, 16), (37, 16), (130, 16), (200, 64)), method=METHODS)
    def test_values_and_derivatives(self, case, method):
        length, size = case
        arrays = draw(length)
        for function in (attend, curvature):
            whole = jax.jit(function)(arrays)
            function = functools.partial(function, method=method)
            rows = self.by_rows(size, lambda f=function: jax.jit(lambda x: f(x))(arrays))
            chex.assert_trees_all_close(rows, whole, rtol=1e-9, atol=1e-11)

    @parameterized.parameters(*METHODS)
    def test_reverse_over_reverse(self, method):
        arrays = draw(70)

        def norm(arrays):
            gradient = jax.grad(functools.partial(scalar, method=method))(arrays)
            return sum(jnp.square(g).sum() for g in jax.tree.leaves(gradient))

        whole = jax.jit(jax.grad(norm))(arrays)
        rows = self.by_rows(16, lambda: jax.jit(jax.grad(norm))(arrays))
        chex.assert_trees_all_close(rows, whole, rtol=1e-9, atol=1e-11)

    def test_masks_and_biases_by_position(self):
        arrays = draw(90)
        by_position = attention.ByPosition(
            3 + jnp.arange(90),
            mask=lambda query, key: query - key < 20,
            bias=lambda query, key: -0.1 * jnp.arange(H)[:, None, None] * (query - key),
        )
        function = functools.partial(curvature, by_position=by_position)
        whole = jax.jit(function)(arrays)
        rows = self.by_rows(16, lambda: jax.jit(lambda x: function(x))(arrays))
        chex.assert_trees_all_close(rows, whole, rtol=1e-9, atol=1e-11)

    @parameterized.parameters((7,), (1, 7), (7, 1), (1, 1, 1, 7), (B, 1, 1, 7), (1, 1, 7, 1))
    def test_a_mask_that_is_broadcast(self, *shape):
        arrays = draw(7, cached=3)
        mask = jnp.asarray(np.random.default_rng(1).random(shape) < 0.7)
        window = attention.ByPosition(3 + jnp.arange(7), mask=lambda query, key: query - key < 2)
        seen = jnp.broadcast_to(jnp.arange(3) <= jnp.arange(7)[:, None], (B, 1, 7, 3))

        def run(mask, by_position):
            return attention.attend(
                *(arrays[name] for name in ("query", "key", "value")),
                mask,
                cached=(arrays["cached_key"], arrays["cached_value"]),
                cache_mask=seen,
                by_position=by_position,
            )

        for by_position in (None, window):
            got, want = (run(x, by_position) for x in (mask, jnp.broadcast_to(mask, (B, 1, 7, 7))))
            chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-11)

    def test_a_cache(self):
        arrays = draw(70, cached=5)
        seen = jnp.broadcast_to(jnp.arange(5)[None] < jnp.array([[3], [5]]), (2, 5))
        cache_mask = jnp.broadcast_to(seen[:, None, None], (2, 1, 70, 5))
        function = functools.partial(curvature, cache_mask=cache_mask)
        whole = jax.jit(function)(arrays)
        rows = self.by_rows(16, lambda: jax.jit(lambda x: function(x))(arrays))
        chex.assert_trees_all_close(rows, whole, rtol=1e-9, atol=1e-11)

    @parameterized.parameters(
        (8, 4, 225, None), (16, 12, 1032, 32), (1, 9, 8200, 112), (64, 32, 8200, 16)
    )
    def test_how_many_queries(self, batch_size, heads, length, expected):
        self.assertEqual(attention.query_rows(batch_size, heads, length), expected)

    @parameterized.parameters(*METHODS)
    def test_temporary_memory_grows_with_the_length_not_with_its_square(self, method):
        function = functools.partial(curvature, method=method)

        def temporary(length):
            shapes = jax.eval_shape(functools.partial(draw, length, np.float32))
            compiled = jax.jit(function).lower(shapes).compile()
            return compiled.memory_analysis().temp_size_in_bytes

        with mock.patch.object(attention, "LARGEST_ROWS", 2**17):
            short, long = temporary(1536), temporary(6144)
        self.assertLess(long / short, 4.8)


if __name__ == "__main__":
    absltest.main()
