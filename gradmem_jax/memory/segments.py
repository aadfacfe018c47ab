"""Writing a context that comes in segments: one WRITE after the other into the same memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradmem_jax.array_checks import as_array, check_ids, numbers_per_sample, on_device
from gradmem_jax.checks import is_symbolic, is_traced, require, require_instance
from gradmem_jax.memory.inner_loop import WriteInfo, per_sample
from gradmem_jax.memory.interface import Memory, MemoryModel, MemoryT
from gradmem_jax.memory.programs import program
from gradmem_jax.trees import Params


def write_context(
    model: MemoryModel[MemoryT],
    params: Params,
    context_ids: ArrayLike,
    *,
    memory: MemoryT | None = None,
    **options: Any,
) -> tuple[MemoryT, WriteInfo]:
    """Writes a context, or its segments one after the other, each WRITE going on from the last.

    The outer gradient passes all of them. A segment of nothing but padding leaves the memory of its
    sample as it is; where there is none yet, it is written as a context of padding is.

    Args:
        model: the model.
        params: its parameters.
        context_ids: int [B, S], or [B, T, S] for T segments, padded on the right.
        memory: where the first segment starts, for writing on; the model's first one by default.
        **options: of `write_memory`, the same for all segments.

    Returns:
        The memory after the last segment, and a `WriteInfo`; with segments its leaves have a
        leading axis T.

    Raises:
        ValueError: what `write_memory` refuses.

    Examples:
        >>> segments = jnp.array([[[1, 2, 3], [4, 5, 0]], [[6, 7, 0], [0, 0, 0]]])  # [B, T, S]
        >>> memory, info = gradmem_jax.write_context(model, params, segments)
        >>> memory.shape, info.losses.shape  # [B, m, d], [T, K, B]
        ((2, 2, 8), (2, 1, 2))
    """
    require_instance("model", model, MemoryModel)
    ids = as_array("context_ids", context_ids, "int ids of shape [B, S] or [B, T, S]")
    if ids.ndim != 3:
        return model.write_memory(params, ids, memory=memory, **options)
    c = model.config
    # All segments at once: those behind the first are traced, and no one looks at them again.
    ids = check_ids("context_ids", ids, ("B", "T", "S"), c.lm.vocab_size, c.pad_id)
    shape = jax.ShapeDtypeStruct((ids.shape[0], ids.shape[2]), jnp.int32)
    jax.eval_shape(lambda ids: model.write_memory(params, ids, memory=memory, **options), shape)
    static, arrays = _split_options(options, ids.shape[0])
    write = program(_write_segments, model, static_argnames=("static",))
    return write(params, ids, memory, arrays, static=tuple(static.items()))


def _split_options(
    options: dict[str, Any], batch_size: int
) -> tuple[dict[str, int], dict[str, Any]]:
    """Splits options that `write_memory` takes into whole numbers, which are compiled, and arrays.

    What is equal for `write_memory` is equal here: a whole number of Python, NumPy or JAX is one.
    """
    counts = {name: options[name] for name in ("num_steps", "max_steps") if name in options}
    rest = {name: x for name, x in options.items() if name not in counts and x is not None}
    for name in ("loss_tolerance", "write_learning_rate"):
        if name in rest:
            is_rate = name == "write_learning_rate"
            rest[name] = numbers_per_sample(name, rest[name], batch_size, is_rate=is_rate)
    static: dict[str, int] = {}
    for name, count in counts.items():
        if count is None:
            continue
        if is_traced(count):
            rest[name] = count
        elif np.ndim(count):
            rest[name] = np.asarray(jax.device_get(count))
            static.setdefault("max_steps", int(rest[name].max()))
        else:
            static[name] = int(count)
    return static, on_device(rest)


def _write_segments(
    model: MemoryModel,
    params: Params,
    context_ids: jax.Array,
    memory: Any,
    arrays: dict[str, Any],
    *,
    static: tuple[tuple[str, int], ...],
) -> tuple[Any, WriteInfo]:
    options = arrays | dict(static)
    segments = jnp.moveaxis(context_ids, 1, 0)

    def write(memory: Memory | None, ids: jax.Array) -> tuple[Memory, WriteInfo]:
        new, info = model.write_memory(params, ids, memory=memory, **options)
        if _shapes(new) != _shapes(memory):
            return new, info
        written = (ids != model.config.pad_id).any(axis=1)

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(per_sample(written, new), new, old)

        return jax.tree.map(keep, new, memory), info

    memory, first = write(memory, segments[0])
    grows = _shapes(jax.eval_shape(write, memory, segments[0])[0]) != _shapes(memory)
    _check_open_number(segments.shape[0], grows)
    if not grows:
        memory, others = jax.lax.scan(write, memory, segments[1:])
        return memory, jax.tree.map(
            lambda one, more: jnp.concatenate([one[None], more]), first, others
        )
    infos = [first]  # the memory grows, as a key-value cache does
    for ids in segments[1:]:
        memory, info = write(memory, ids)
        infos.append(info)
    return memory, jax.tree.map(lambda *rows: jnp.stack(rows), *infos)


def _check_open_number(num_segments: Any, grows: bool) -> None:
    """Refuses a number of segments T that `jax.export` leaves open and nothing can be made of."""
    if not is_symbolic(num_segments):
        return
    require(
        not grows,
        f"the number of segments, {num_segments}, is symbolic, and this memory grows with every "
        "segment; export a known number.",
    )
    try:
        has_more = bool(num_segments >= 2)
    except jax.errors.InconclusiveDimensionOperation:
        has_more = False
    require(
        has_more,
        f"the number of segments, {num_segments}, is symbolic and may be 1, which [B, S] is for; "
        f"say that it is not: jax.export.symbolic_shape(..., constraints=['{num_segments} >= 2']).",
    )


def outer_write_loss(model: MemoryModel, context_ids: jax.Array, info: WriteInfo) -> jax.Array:
    """The WRITE loss [B] that `inner_loss_weight` adds to the outer loss.

    With segments it is a mean over those that hold a token.
    """
    if jnp.ndim(context_ids) != 3:
        return model.outer_write_loss(info)
    written = (context_ids != model.config.pad_id).any(axis=2)
    losses = jax.vmap(model.outer_write_loss)(info)
    count = jnp.maximum(written.sum(axis=1), 1).astype(losses.dtype)
    return (losses * written.T.astype(losses.dtype)).sum(axis=0) / count


def write_token_losses(
    model: MemoryModel, params: Params, memory: Memory, context_ids: jax.Array
) -> jax.Array:
    """Loss of every token of the context, or of its segments, given one memory; like context_ids.

    With segments this is a curve of what is forgotten: the first ones were written longest ago.
    `FullContext` forgets nothing; its losses do not depend on the memory.
    """

    def losses(ids: jax.Array) -> jax.Array:
        return model.write_token_losses(params, memory, ids)

    if jnp.ndim(context_ids) != 3:
        return losses(context_ids)
    return jax.vmap(losses, 1, 1)(context_ids)


def _shapes(memory: Memory | None) -> Memory | None:
    return jax.tree.map(jnp.shape, memory)
