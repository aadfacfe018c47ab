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
    # Not `_multiply`, which under an outer forward mode would meet itself.
    return lax.dot_general(lhs, rhs, dimensions, precision, dtype), (lhs, rhs)


def _backward(
    dimensions: _Dimensions,
    precision: Any,
    dtype: Any,
    saved: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    lhs, rhs = saved
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimensions
    lhs_free = [axis for axis in range(lhs.ndim) if axis not in lhs_contract + lhs_batch]
    rhs_free = [axis for axis in range(rhs.ndim) if axis not in rhs_contract + rhs_batch]
    first_of_rhs = len(lhs_batch) + len(lhs_free)
    batch, of_lhs = range(len(lhs_batch)), range(len(lhs_batch), first_of_rhs)
    of_rhs = range(first_of_rhs, cotangent.ndim)
    multiply = functools.partial(lax.dot_general, precision=precision, preferred_element_type=dtype)

    product = multiply(cotangent, rhs, ((of_rhs, rhs_free), (batch, rhs_batch)))
    contract = [lhs_contract[i] for i in np.argsort(rhs_contract)]
    lhs_cotangent = _arrange(product, [*lhs_batch, *lhs_free, *contract])

    contract = [rhs_contract[i] for i in np.argsort(lhs_contract)]
    if math.prod(rhs.shape[i] for i in contract) <= math.prod(rhs.shape[i] for i in rhs_free):
        product = multiply(lhs, cotangent, ((lhs_free, of_lhs), (lhs_batch, batch)))
        rhs_cotangent = _arrange(product, [*rhs_batch, *contract, *rhs_free])
    else:
        product = multiply(cotangent, lhs, ((of_lhs, lhs_free), (batch, lhs_batch)))
        rhs_cotangent = _arrange(product, [*rhs_batch, *rhs_free, *contract])
    return lhs_cotangent.astype(lhs.dtype), rhs_cotangent.astype(rhs.dtype)


def _arrange(product: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Moves axis i of a product to where `axes[i]` says."""
    if list(axes) == sorted(axes):
        return product
    product = lax.optimization_barrier(product)  # or XLA swaps the operands again
    return jnp.transpose(product, [axes.index(axis) for axis in range(product.ndim)])


_multiply.defvjp(_forward, _backward)
