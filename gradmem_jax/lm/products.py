"""Matrix products whose derivatives are fast on CPU."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_Axes = tuple[int, ...]
_Dimensions = tuple[tuple[_Axes, _Axes], tuple[_Axes, _Axes]]


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Sequence[Sequence[Sequence[int]]],
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jax.lax.dot_general` with a backward pass that is faster on CPU.

    The cotangent of `rhs` is a product of `lhs` and the cotangent of the result over the axes that
    both have in front. On CPU, XLA copies the left one of two such operands to have these axes
    last, and computes all that the operand comes from as slowly as it copies. JAX puts the
    cotangent on the left; here the smaller operand stands there. Values are those of
    `jax.lax.dot_general`, and so are derivatives of any order, but on CPU the first one must be
    taken in reverse mode.

    Args:
        lhs: any shape and dtype.
        rhs: any shape and dtype.
        dimension_numbers: axes of lhs and of rhs to contract, axes of lhs and of rhs in batches.
        precision: see `jax.lax.dot_general`.
        preferred_element_type: see `jax.lax.dot_general`.

    Returns:
        Its axes are those of batches, the other ones of lhs, the other ones of rhs.
    """
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    dimensions = (
        (tuple(lhs_contract), tuple(rhs_contract)),
        (tuple(lhs_batch), tuple(rhs_batch)),
    )
    multiply = _multiply if jax.default_backend() == "cpu" else lax.dot_general
    return multiply(lhs, rhs, dimensions, precision, preferred_element_type)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _multiply(
    lhs: jax.Array, rhs: jax.Array, dimensions: _Dimensions, precision: Any, dtype: Any
) -> jax.Array:
    return lax.dot_general(lhs, rhs, dimensions, precision, dtype)


def _forward(
    lhs: jax.Array, rhs: jax.Array, dimensions: _Dimensions, precision: Any, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return lax.dot_general(lhs, rhs, dimensions, precision, dtype), (lhs, rhs)


def _backward(
    dimensions: _Dimensions,
    precision: Any,
    dtype: Any,
    saved: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    lhs, rhs = saved
    of_lhs = lambda lhs: lax.dot_general(lhs, rhs, dimensions, precision, dtype)
    (lhs_cotangent,) = jax.linear_transpose(of_lhs, lhs)(cotangent)

    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimensions
    num_batch, num_summed = len(lhs_batch), lhs.ndim - len(lhs_batch) - len(lhs_contract)
    batch, summed = range(num_batch), range(num_batch, num_batch + num_summed)
    lhs_summed = [axis for axis in range(lhs.ndim) if axis not in lhs_contract + lhs_batch]
    free = [axis for axis in range(rhs.ndim) if axis not in rhs_contract + rhs_batch]
    contract = [rhs_contract[i] for i in np.argsort(lhs_contract)]
    multiply = functools.partial(lax.dot_general, precision=precision, preferred_element_type=dtype)
    if math.prod(rhs.shape[axis] for axis in contract) <= math.prod(rhs.shape[a] for a in free):
        product = multiply(lhs, cotangent, ((lhs_summed, summed), (lhs_batch, batch)))
        axes = [*rhs_batch, *contract, *free]
    else:
        product = multiply(cotangent, lhs, ((summed, lhs_summed), (batch, lhs_batch)))
        axes = [*rhs_batch, *free, *contract]
    if axes != sorted(axes):
        product = lax.optimization_barrier(product)  # or XLA swaps the operands again
        product = jnp.transpose(product, [axes.index(axis) for axis in range(rhs.ndim)])
    return lhs_cotangent, product.astype(rhs.dtype)


_multiply.defvjp(_forward, _backward)
