"""Matrix products whose backward pass is fast on CPU, however often they are differentiated."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from gradmem_jax.parallel.any_mesh import vary_like
from gradmem_jax.precision import current_precision

Axes = tuple[int, ...]
Dimensions = tuple[tuple[Axes, Axes], tuple[Axes, Axes]]


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
    last, and fuses into that slow copy all arithmetic that produced the operand. JAX puts the
    cotangent on the left; here the smaller operand stands there. Values and derivatives are those
    of `jax.lax.dot_general`.

    Args:
        lhs: any shape and dtype.
        rhs: any shape and dtype.
        dimension_numbers: axes of lhs and of rhs to contract, axes of lhs and of rhs in batches.
        precision: see `jax.lax.dot_general`; None is that of `jax.default_matmul_precision` now.
        preferred_element_type: see `jax.lax.dot_general`.

    Returns:
        Its axes are those of batches, the other ones of lhs, the other ones of rhs.
    """
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    dimensions = (
        (tuple(lhs_contract), tuple(rhs_contract)),
        (tuple(lhs_batch), tuple(rhs_batch)),
    )
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    precision = current_precision() if precision is None else precision
    order = range(lhs.ndim + rhs.ndim - 2 * len(lhs_contract) - len(lhs_batch))
    return _product(lhs, rhs, dimensions, order, precision, preferred_element_type)


def saves_products(primitive: Any, *arguments: Any, **params: Any) -> Any:
    """Policy of `jax.checkpoint`: products without batches are kept, all else is computed again."""
    if primitive is _product_p:
        _, (lhs_batch, _) = params["dimensions"]
        return not lhs_batch
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return policy(primitive, *arguments, **params)


def _product(
    lhs: jax.Array,
    rhs: jax.Array,
    dimensions: Dimensions,
    order: Sequence[int],
    precision: Any,
    dtype: Any,
) -> jax.Array:
    """A product whose axis i is axis `order[i]` of what `lax.dot_general` returns."""
    lhs, rhs = vary_like((lhs, rhs), (lhs, rhs))
    return _product_p.bind(
        lhs, rhs, dimensions=dimensions, order=tuple(order), precision=precision, dtype=dtype
    )


def _compute(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    dimensions: Dimensions,
    order: Axes,
    precision: Any,
    dtype: Any,
) -> jax.Array:
    return jnp.transpose(lax.dot_general(lhs, rhs, dimensions, precision, dtype), order)


def _compute_on_cpu(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    dimensions: Dimensions,
    order: Axes,
    precision: Any,
    dtype: Any,
) -> jax.Array:
    product = lax.dot_general(lhs, rhs, dimensions, precision, dtype)
    if list(order) == sorted(order):
        return product
    return jnp.transpose(lax.optimization_barrier(product), order)  # or XLA swaps the operands


def _shape(
    lhs: Any, rhs: Any, *, dimensions: Dimensions, order: Axes, precision: Any, dtype: Any
) -> Any:
    product, _ = lax.dot_general_p.abstract_eval(
        lhs,
        rhs,
        dimension_numbers=dimensions,
        precision=precision,
        preferred_element_type=dtype,
        out_sharding=None,
    )
    return lax.transpose_p.abstract_eval(product, permutation=order)[0]


def _free_axes(ndim: int, contract: Axes, batch: Axes) -> list[int]:
    return [axis for axis in range(ndim) if axis not in contract + batch]


def _cotangent(
    side: int,
    cotangent: jax.Array,
    operands: tuple[Any, Any],
    *,
    dimensions: Dimensions,
    order: Axes,
    precision: Any,
    dtype: Any,
) -> jax.Array:
    """The cotangent of an operand, `side` 0 (lhs) or 1 (rhs): a product with the other one."""
    contract, batch = dimensions
    own, other = operands[side].aval, operands[1 - side]
    ndims = [other.ndim, own.ndim] if side else [own.ndim, other.ndim]
    free = [_free_axes(ndims[i], contract[i], batch[i]) for i in (0, 1)]
    # Where each axis of the cotangent comes from: (None, number of a batch) or (side, axis).
    natural: list[tuple[int | None, int]] = [(None, i) for i in range(len(batch[0]))]
    natural += [(i, axis) for i in (0, 1) for axis in free[i]]
    sources = [natural[axis] for axis in order]
    places = {source: place for place, source in enumerate(sources)}
    cotangent_dimensions = (
        tuple(places[1 - side, axis] for axis in free[1 - side]),
        tuple(places[None, i] for i in range(len(batch[0]))),
    )
    other_dimensions = (tuple(free[1 - side]), batch[1 - side])
    from_cotangent = [axis for source, axis in sources if source == side]
    # Own axis of each contracted one, in the order in which the other operand's axes come out.
    from_other = [contract[side][contract[1 - side].index(i)] for i in sorted(contract[1 - side])]
    if side == 1 and _is_at_most(_size(own, contract[side]), _size(own, free[side])):
        left, right = (other, other_dimensions), (cotangent, cotangent_dimensions)
        axes = [*batch[side], *from_other, *from_cotangent]
    else:
        left, right = (cotangent, cotangent_dimensions), (other, other_dimensions)
        axes = [*batch[side], *from_cotangent, *from_other]
    (left_contract, left_batch), (right_contract, right_batch) = left[1], right[1]
    product = _product(
        left[0],
        right[0],
        ((left_contract, right_contract), (left_batch, right_batch)),
        [axes.index(axis) for axis in range(own.ndim)],
        precision,
        dtype,
    )
    return product.astype(own.dtype)


def _size(aval: Any, axes: Sequence[int]) -> int:
    return math.prod(aval.shape[axis] for axis in axes)


def _is_at_most(size: int, other: int) -> bool:
    """Whether a size is known to be at most as large as another; `jax.export` leaves some open."""
    try:
        return size <= other
    except jax.errors.InconclusiveDimensionOperation:
        return False


def _lhs_cotangent(cotangent: jax.Array, lhs: Any, rhs: jax.Array, **params: Any) -> jax.Array:
    return _cotangent(0, cotangent, (lhs, rhs), **params)


def _rhs_cotangent(cotangent: jax.Array, lhs: jax.Array, rhs: Any, **params: Any) -> jax.Array:
    return _cotangent(1, cotangent, (lhs, rhs), **params)


def _in_batches(
    operands: tuple[jax.Array, jax.Array],
    batch_axes: tuple[int | None, int | None],
    *,
    dimensions: Dimensions,
    order: Axes,
    precision: Any,
    dtype: Any,
) -> tuple[jax.Array, int]:
    """The product of operands of which one or both have one more axis, under `jax.vmap`."""
    contract, batch = dimensions
    has_axis = [axis is not None for axis in batch_axes]
    lhs, rhs = (
        jnp.moveaxis(x, axis, 0) if axis is not None else x
        for x, axis in zip(operands, batch_axes, strict=True)
    )

    def shift(pair: tuple[Axes, Axes]) -> tuple[Axes, Axes]:
        lhs_axes, rhs_axes = pair
        return tuple(i + has_axis[0] for i in lhs_axes), tuple(i + has_axis[1] for i in rhs_axes)

    shifted_batch = shift(batch)
    if all(has_axis):
        new = 0
        shifted_batch = (0, *shifted_batch[0]), (0, *shifted_batch[1])
    elif has_axis[0]:
        new = len(batch[0])
    else:
        new = lhs.ndim - len(contract[0])
    moved_order = [axis + (axis >= new) for axis in order]
    product = _product(
        lhs, rhs, (shift(contract), shifted_batch), [new, *moved_order], precision, dtype
    )
    return product, 0


_product_p = core.Primitive("product")
_product_p.def_impl(_compute)
_product_p.def_abstract_eval(_shape)
ad.defbilinear(_product_p, _lhs_cotangent, _rhs_cotangent)
batching.primitive_batchers[_product_p] = _in_batches
mlir.register_lowering(_product_p, mlir.lower_fun(_compute, multiple_results=False))
mlir.register_lowering(
    _product_p, mlir.lower_fun(_compute_on_cpu, multiple_results=False), platform="cpu"
)
