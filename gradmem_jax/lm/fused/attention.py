"""Causal attention as JAX primitives: kernels on TPU and GPU, blocks of `blockwise` elsewhere.

    forward          JVP: forward tangent      its transpose: backward
    backward         JVP: backward tangent     its transpose: that of `blockwise`

So a gradient takes the forward and the backward pass, and forward over reverse takes their two
tangents: four passes, all of them kernels. Forward mode alone takes the first two. Every further
derivative, and reverse over reverse, is exact as well; `blockwise` computes it. It also does where
the compiler splits a program over devices, which it cannot do with a kernel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.lm import blockwise
from gradmem_jax.lm.fused import passes
from gradmem_jax.lm.fused.cost import Cost, Machine, cost_of
from gradmem_jax.lm.fused.passes import Arrays
from gradmem_jax.parallel.any_mesh import vary_like
from gradmem_jax.precision import current_precision

BLOCKS: dict[Machine, int] = {"tpu": 128, "gpu": 32}
_ONE_PASS = (None, "default", "fastest", "bfloat16")  # `jax.default_matmul_precision`
KERNEL_DTYPES: dict[Machine, tuple[str, ...]] = {
    "tpu": ("float32", "bfloat16"),
    "gpu": ("float32", "bfloat16", "float16"),
}
Run = Callable[[passes.Pass, Arrays, Arrays], Arrays]


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    block: int,
    interpret: Machine | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of each query to its own position's key and those before it.

    Args:
        query: [B, Hkv, G, S, D], scaled already.
        key: [B, Hkv, S, D].
        value: [B, Hkv, S, D].
        block: queries and keys of a block where no kernel is compiled.
        interpret: whose kernels are interpreted, on any platform; for tests.

    Returns:
        Mean of the values [B, Hkv, G, S, D], logarithm of the sum of weights [B, Hkv, G, S, 1],
        float32 at least.
    """
    # Where kernels are lowered, `with jax.default_matmul_precision` is over: ask for it here.
    mean, log_sum_exp = _bind(
        _forward_p,
        (query, key, value),
        block=block,
        interpret=interpret,
        precision=current_precision(),
    )
    return mean, log_sum_exp


def cost(name: str, operands: Sequence[Any], machine: Machine) -> Cost | None:
    """What the kernels of an equation of a jaxpr take.

    Args:
        name: of its primitive.
        operands: their shapes and dtypes.
        machine: for what machine they are compiled.

    Returns:
        None if the primitive is none of this file.
    """
    if name not in _KERNELS:
        return None
    found = Cost()

    def run(kernel: passes.Pass, queries: Sequence[Any], keys: Sequence[Any]) -> Arrays:
        nonlocal found
        query_shapes, key_shapes = ([*map(_without_heads, x)] for x in (queries, keys))
        found += cost_of(kernel, query_shapes, key_shapes, BLOCKS[machine])
        return ()

    _KERNELS[name](run, *operands)
    return found


def _without_heads(x: Any) -> Any:
    """Shape and dtype of an array whose heads are part of the batch."""
    batch, heads, *others = x.shape
    return jax.ShapeDtypeStruct((batch * heads, *others), x.dtype)


def _bind(primitive: core.Primitive, arrays: Sequence[Any], **params: Any) -> Arrays:
    return tuple(primitive.bind(*vary_like(tuple(arrays), tuple(arrays)), **params))


# Each pass by its kernels, in blocks, and its results' shapes. Operands, alike in all of them:
# forward (query, key, value); its tangent (query, key, value, mean, log_sum_exp, 3 tangents);
# backward (query, key, value, d_mean, log_sum_exp, shift); its tangent has 6 tangents behind.


def _forward(run: Run, query: Any, key: Any, value: Any) -> Arrays:
    return run(passes.FORWARD, (query,), (key, value))


def _forward_tangent(run: Run, *operands: Any) -> Arrays:
    query, key, value, mean, log_sum_exp, d_query, d_key, d_value = operands
    queries = (query, mean, log_sum_exp, d_query)
    return run(passes.FORWARD_TANGENT, queries, (key, value, d_key, d_value))


def _backward(run: Run, query: Any, key: Any, value: Any, *others: Any) -> Arrays:
    queries, keys = (query, *others), (key, value)
    to_queries = run(passes.BACKWARD_QUERIES, queries, keys)
    return to_queries + run(passes.BACKWARD_KEYS, queries, keys)


def _backward_tangent(run: Run, *operands: Any) -> Arrays:
    (query, key, value, *others), (d_query, d_key, d_value, *d_others) = operands[:6], operands[6:]
    queries, keys = (query, *others, d_query, *d_others), (key, value, d_key, d_value)
    to_queries = run(passes.BACKWARD_QUERIES_TANGENT, queries, keys)
    return to_queries + run(passes.BACKWARD_KEYS_TANGENT, queries, keys)


def _forward_in_blocks(query: Any, key: Any, value: Any, block: int) -> Arrays:
    return blockwise.forward(query, key, value, block)


def _forward_tangent_in_blocks(*operands: Any, block: int) -> Arrays:
    forward = functools.partial(_forward_in_blocks, block=block)
    return jax.jvp(forward, operands[:3], operands[5:])[1]


def _backward_in_blocks(*operands: Any, block: int) -> Arrays:
    query, key, value, d_mean, log_sum_exp, shift = operands
    return blockwise.backward(query, key, value, d_mean, log_sum_exp, shift, block)


def _backward_tangent_in_blocks(*operands: Any, block: int) -> Arrays:
    backward = functools.partial(_backward_in_blocks, block=block)
    return jax.jvp(backward, operands[:6], operands[6:])[1]


def _shapes_of_forward(query: Any, *others: Any, **params: Any) -> Arrays:
    del others, params
    dtype = at_least_float32(query.dtype)
    return query.update(dtype=dtype), query.update(shape=(*query.shape[:-1], 1), dtype=dtype)


def _shapes_of_backward(query: Any, key: Any, value: Any, *others: Any, **params: Any) -> Arrays:
    del others, params
    return query, key, value


def _compute(
    kernels: Callable[..., Arrays],
    in_blocks: Callable[..., Arrays],
    shapes: Callable[..., Arrays],
    machine: Machine | None,
    *operands: jax.Array,
    block: int,
    interpret: Machine | None,
    precision: str | None,
) -> Arrays:
    """A pass by the kernels of a machine if it has any for these arrays, else in blocks."""
    query = operands[0]
    compiles = machine is not None and query.dtype.name in KERNEL_DTYPES[machine]
    whose = interpret or (machine if compiles and query.shape[-1] > 1 else None)
    if whose is None:
        with jax.default_matmul_precision(precision):
            return in_blocks(*operands, block=block)
    from gradmem_jax.lm.fused.kernels import walk  # Pallas takes a third of a second

    if whose == "tpu":  # its kernels know of one pass in bfloat16 and, of float32, of six
        is_one_pass = precision in _ONE_PASS or query.dtype != jnp.float32
        precision = None if is_one_pass else "highest"

    def run(kernel: passes.Pass, queries: Arrays, keys: Arrays) -> Arrays:
        queries, keys = (
            tuple(x.reshape(_without_heads(x).shape) for x in y) for y in (queries, keys)
        )
        return walk(
            kernel,
            queries,
            keys,
            machine=whose,
            block=block if interpret else BLOCKS[whose],
            name=kernels.__name__.removeprefix("_"),
            interpret=interpret is not None,
        )

    places = shapes(*map(jax.typeof, operands))
    with jax.default_matmul_precision(precision):
        found = zip(kernels(run, *operands), places, strict=True)
    return tuple(x.reshape(place.shape).astype(place.dtype) for x, place in found)


def _primitive(
    kernels: Callable[..., Arrays],
    in_blocks: Callable[..., Arrays],
    shapes: Callable[..., Arrays],
) -> core.Primitive:
    primitive = core.Primitive(f"attention{kernels.__name__}")
    primitive.multiple_results = True
    _KERNELS[primitive.name] = kernels
    primitive.def_abstract_eval(shapes)

    @functools.partial(jax.jit, static_argnames=("block", "interpret", "precision"))
    def compiled(*operands: jax.Array, **params: Any) -> Sequence[jax.Array]:
        return primitive.bind(*operands, **params)

    primitive.def_impl(compiled)

    def lowering(machine: Machine | None) -> Any:
        compute = functools.partial(_compute, kernels, in_blocks, shapes, machine)
        return mlir.lower_fun(compute, multiple_results=True)

    def where_a_device_is_alone(machine: Machine) -> Any:
        by_kernels, by_blocks = lowering(machine), lowering(None)

        def lower(context: Any, *operands: Any, **params: Any) -> Any:
            alone = _is_alone(context.module_context.axis_context)
            return (by_kernels if alone else by_blocks)(context, *operands, **params)

        return lower

    mlir.register_lowering(primitive, lowering(None))
    mlir.register_lowering(primitive, where_a_device_is_alone("tpu"), platform="tpu")
    mlir.register_lowering(primitive, where_a_device_is_alone("gpu"), platform="cuda")

    def in_batches(
        operands: Sequence[jax.Array], axes: Sequence[int | None], **params: Any
    ) -> tuple[Arrays, Sequence[int]]:
        """`jax.vmap`: its axis becomes a part of the batch."""
        mapped = zip(operands, axes, strict=True)
        size = next(x.shape[axis] for x, axis in mapped if axis is not None)

        def merged(x: jax.Array, axis: int | None) -> jax.Array:
            if axis is None:
                x = jnp.broadcast_to(x[None], (size, *x.shape))
            else:
                x = jnp.moveaxis(x, axis, 0)
            return x.reshape(-1, *x.shape[2:])

        found = _bind(primitive, [*map(merged, operands, axes)], **params)
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in found), [0] * len(found)

    batching.primitive_batchers[primitive] = in_batches
    return primitive


def _is_alone(axes: Any) -> bool:
    """Whether what is lowered is one device's program: the compiler cannot split kernels."""
    if hasattr(axes, "manual_axes"):
        return {*axes.manual_axes, *axes.mesh.manual_axes} == {*axes.mesh.axis_names}
    return getattr(axes, "num_devices", 1) == 1


def _instantiated(tangents: Sequence[Any]) -> Arrays:
    return tuple(ad.instantiate_zeros(x) for x in tangents)


def _jvp_by(tangent: core.Primitive, takes_results: bool) -> Callable[..., Any]:
    """The JVP of the primitive whose tangent another one computes."""

    def jvp(
        primitive: core.Primitive, primals: Arrays, tangents: Sequence[Any], **params: Any
    ) -> tuple[Arrays, Arrays]:
        results = _bind(primitive, primals, **params)
        saved = results if takes_results else ()
        return results, _bind(tangent, (*primals, *saved, *_instantiated(tangents)), **params)

    return jvp


def _jvp_in_blocks(
    in_blocks: Callable[..., Arrays],
) -> Callable[..., Any]:
    def jvp(
        primitive: core.Primitive, primals: Arrays, tangents: Sequence[Any], **params: Any
    ) -> tuple[Arrays, Arrays]:
        of_block = functools.partial(in_blocks, block=params["block"])
        with jax.default_matmul_precision(params["precision"]):
            _, found = jax.jvp(of_block, primals, _instantiated(tangents))
        return _bind(primitive, primals, **params), found

    return jvp


def _transpose_of_forward_tangent(
    cotangents: Sequence[Any], *operands: Any, **params: Any
) -> list[Any]:
    query, key, value, mean, log_sum_exp, *linear = operands
    d_mean, d_log_sum_exp = _instantiated(cotangents)
    shift = blockwise.shift_of(mean, d_mean, d_log_sum_exp)
    found = _bind(_backward_p, (query, key, value, d_mean, log_sum_exp, shift), **params)
    wanted = zip(linear, found, strict=True)
    return [None] * 5 + [x if ad.is_undefined_primal(old) else None for old, x in wanted]


def _transpose_in_blocks(
    in_blocks: Callable[..., Arrays],
) -> Callable[..., Any]:
    def transpose(cotangents: Sequence[Any], *operands: Any, **params: Any) -> list[Any]:
        is_linear = [ad.is_undefined_primal(x) for x in operands]
        shapes = [x.aval for x in operands if ad.is_undefined_primal(x)]

        def of_linear(*linear: jax.Array) -> Arrays:
            left = iter(linear)
            chosen = zip(operands, is_linear, strict=True)
            return in_blocks(
                *(next(left) if new else x for x, new in chosen), block=params["block"]
            )

        with jax.default_matmul_precision(params["precision"]):
            pulled = jax.linear_transpose(of_linear, *shapes)(_instantiated(cotangents))
        found = iter(pulled)
        return [next(found) if new else None for new in is_linear]

    return transpose


_KERNELS: dict[str, Callable[..., Arrays]] = {}
_forward_p = _primitive(_forward, _forward_in_blocks, _shapes_of_forward)
_forward_tangent_p = _primitive(_forward_tangent, _forward_tangent_in_blocks, _shapes_of_forward)
_backward_p = _primitive(_backward, _backward_in_blocks, _shapes_of_backward)
_backward_tangent_p = _primitive(
    _backward_tangent, _backward_tangent_in_blocks, _shapes_of_backward
)
ad.primitive_jvps[_forward_p] = functools.partial(_jvp_by(_forward_tangent_p, True), _forward_p)
ad.primitive_jvps[_backward_p] = functools.partial(_jvp_by(_backward_tangent_p, False), _backward_p)
for _p, _in_blocks in (
    (_forward_tangent_p, _forward_tangent_in_blocks),
    (_backward_tangent_p, _backward_tangent_in_blocks),
):
    ad.primitive_jvps[_p] = functools.partial(_jvp_in_blocks(_in_blocks), _p)
ad.primitive_transposes[_forward_tangent_p] = _transpose_of_forward_tangent
ad.primitive_transposes[_backward_p] = _transpose_in_blocks(_backward_in_blocks)
ad.primitive_transposes[_backward_tangent_p] = _transpose_in_blocks(_backward_tangent_in_blocks)
