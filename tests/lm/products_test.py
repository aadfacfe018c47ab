"""`products.dot_general` against `jax.lax.dot_general`: values, and derivatives of two orders."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from gradmem_jax.lm.products import dot_general, saves_products

# Shapes of both operands and the axes to contract and in batches.
PRODUCTS = {
    "kernel_with_more_outputs": ((2, 5, 3), (3, 7), (((2,), (0,)), ((), ()))),
    "kernel_with_fewer_outputs": ((2, 5, 7), (7, 3), (((2,), (0,)), ((), ()))),
    "kernel_into_heads": ((2, 5, 6), (6, 4, 3), (((2,), (0,)), ((), ()))),
    "kernel_out_of_heads": ((2, 5, 4, 3), (4, 3, 6), (((2, 3), (0, 1)), ((), ()))),
    "scores": ((2, 3, 2, 5, 4), (2, 3, 6, 4), (((4,), (3,)), ((0, 1), (0, 1)))),
    "scores_of_few_keys": ((2, 3, 2, 5, 4), (2, 3, 2, 4), (((4,), (3,)), ((0, 1), (0, 1)))),
    "mixture": ((2, 3, 2, 5, 6), (2, 3, 6, 4), (((4,), (2,)), ((0, 1), (0, 1)))),
    "axes_in_any_order": ((4, 2, 5, 3), (3, 6, 2, 4), (((3, 0), (0, 3)), ((1,), (2,)))),
}


def draw(*shape, dtype="float64"):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), dtype)


def left_operands(function, *arguments):
    """Shapes of the left operands of the products of a function's program."""
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return [eqn.invars[0].aval.shape for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "product"]


class ProductsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(jax.enable_x64(True))

    @parameterized.named_parameters((name, *case) for name, case in PRODUCTS.items())
    def test_value_and_derivatives(self, lhs_shape, rhs_shape, dimensions):
        operands = draw(*lhs_shape), draw(*rhs_shape)
        directions = jax.tree.map(jnp.cos, operands)

        def results(multiply):
            multiply_them = lambda *operands: multiply(*operands, dimensions)
            loss = lambda *operands: jnp.tanh(multiply_them(*operands)).sum()
            gradients = jax.grad(loss, argnums=(0, 1))
            size = lambda *operands: sum((g**2).sum() for g in gradients(*operands))
            return (
                multiply(*operands, dimensions),
                gradients(*operands),
                jax.jvp(multiply_them, operands, directions)[1],
                jax.jvp(gradients, operands, directions)[1],
                jax.grad(size, argnums=(0, 1))(*operands),
            )

        chex.assert_trees_all_close(results(dot_general), results(lax.dot_general), rtol=1e-12)

    @parameterized.named_parameters((name, *case) for name, case in PRODUCTS.items())
    def test_vmap(self, lhs_shape, rhs_shape, dimensions):
        for lhs_axis, rhs_axis in ((0, None), (None, 1), (1, 0)):
            lhs = draw(*lhs_shape) if lhs_axis is None else draw(*lhs_shape, 2)
            rhs = draw(*rhs_shape) if rhs_axis is None else draw(*rhs_shape, 2)
            lhs = lhs if lhs_axis is None else jnp.moveaxis(lhs, -1, lhs_axis)
            rhs = rhs if rhs_axis is None else jnp.moveaxis(rhs, -1, rhs_axis)

            def results(multiply, axes=(lhs_axis, rhs_axis), operands=(lhs, rhs)):
                each = jax.vmap(lambda x, y: multiply(x, y, dimensions), axes)
                loss = lambda *operands: jnp.tanh(each(*operands)).sum()
                return each(*operands), jax.grad(loss, argnums=(0, 1))(*operands)

            chex.assert_trees_all_close(results(dot_general), results(lax.dot_general), rtol=1e-12)

    def test_what_a_checkpoint_keeps(self):
        def loss(x, kernel):
            hidden = jnp.sin(dot_general(x, kernel, (((1,), (0,)), ((), ()))))
            scores = dot_general(hidden, hidden, (((1,), (1,)), ((0,), (0,))))
            return jnp.sin(scores).sum()

        kept = jax.checkpoint(loss, policy=saves_products)
        _, pull_back = jax.vjp(kept, draw(4, 3), draw(3, 5))
        shapes = sorted(x.shape for x in jax.tree.leaves(pull_back))
        self.assertEqual(shapes, [(3, 5), (4, 3), (4, 5)])  # arguments and the first product

    @parameterized.parameters("bfloat16", "float32")
    def test_types(self, dtype):
        lhs, rhs = draw(4, 3, dtype=dtype), draw(3, 5, dtype=dtype)
        dimensions = (((1,), (0,)), ((), ()))

        def results(multiply):
            product = lambda lhs, rhs: multiply(
                lhs, rhs, dimensions, preferred_element_type=jnp.float32
            )
            value, pull_back = jax.vjp(product, lhs, rhs)
            return value, pull_back(jnp.cos(value))

        got, want = results(dot_general), results(lax.dot_general)
        chex.assert_trees_all_equal_dtypes(got, want)
        chex.assert_trees_all_close(got, want, rtol=1e-2 if dtype == "bfloat16" else 1e-6)

    @parameterized.parameters(
        ("kernel_with_more_outputs", (2, 5, 3)),
        ("kernel_with_fewer_outputs", (2, 5, 3)),
        ("scores", (2, 3, 2, 5, 4)),
        ("mixture", (2, 3, 2, 5, 4)),
    )
    def test_the_smaller_operand_stands_on_the_left(self, name, smaller):
        lhs_shape, rhs_shape, dimensions = PRODUCTS[name]
        lhs, rhs = draw(*lhs_shape), draw(*rhs_shape)
        cotangent = dot_general(lhs, rhs, dimensions)
        _, pull_back = jax.vjp(lambda rhs: dot_general(lhs, rhs, dimensions), rhs)
        *_, last = left_operands(pull_back, cotangent)
        self.assertEqual(last, smaller)


if __name__ == "__main__":
    absltest.main()
