"""Parts of a batch that are processed one after the other."""

import contextvars
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from gradmem_jax.checks import AUTOMATIC, require, require_count
from gradmem_jax.trees import Params, PyTree

WriteFn = TypeVar("WriteFn", bound=Callable[..., Any])
_CPU_TOKENS = 500  # of a part on CPU: fewer cost more calls, more do not stay in its caches
_in_part = contextvars.ContextVar("in_part", default=False)


def count_micro_batches(num_micro_batches: int, batch_size: int, num_tokens: int) -> int:
    """Returns into how many parts a batch is to be split.

    Args:
        num_micro_batches: how many. `AUTOMATIC` is 1 on accelerators, which large batches fill, and
            on CPU so many that a part has some 500 tokens, whatever the model (measured:
            docs/performance.md).
        batch_size: B, on one device.
        num_tokens: of a sample, context and queries.

    Raises:
        ValueError: the number does not divide B.
    """
    if require_count("num_micro_batches", num_micro_batches) != AUTOMATIC:
        require(
            batch_size % num_micro_batches == 0,
            f"batch size {batch_size} is not a multiple of num_micro_batches={num_micro_batches}.",
        )
        return num_micro_batches
    if jax.default_backend() != "cpu" or not batch_size:
        return 1
    distance = lambda size: abs(math.log(size * max(num_tokens, 1) / _CPU_TOKENS))
    sizes = (size for size in range(1, batch_size + 1) if batch_size % size == 0)
    return batch_size // min(sizes, key=distance)


def sum_over_parts(function: Callable[[PyTree], PyTree], batch: PyTree, num_parts: int) -> PyTree:
    """Adds up what a function makes of one part after the other of a batch.

    A `write_memory` that it calls does not split its part again.

    Args:
        function: `(part of the batch) -> sums over the part`.
        batch: arrays [B, ...].
        num_parts: from `count_micro_batches`.
    """
    function = _taken_whole(function)
    if num_parts == 1:
        return function(batch)
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts)),
    )
    add = lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None)
    return jax.lax.scan(add, zeros, parts)[0]


def _taken_whole(function: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """The function, traced such that `write_in_parts` leaves its batch whole."""

    def run(part: PyTree) -> PyTree:
        before = _in_part.set(True)
        try:
            return function(part)
        finally:
            _in_part.reset(before)

    return run


def _count_devices(batch_size: int) -> int:
    """Over how many devices a batch of this size may lie; `shard_map` and `pmap` have split it."""
    is_split = bool(jax.sharding.get_abstract_mesh().manual_axes)
    return 1 if is_split or batch_size % jax.device_count() else jax.device_count()


def write_in_parts(write: WriteFn) -> WriteFn:
    """Makes a `write_memory` that takes a large batch in parts, where that is faster: on CPU.

    Sample i goes into part i % n of n, so that every part lies on all devices if the batch does.

    Args:
        write: see `MemoryModel.write_memory`.
    """

    @functools.wraps(write)
    def write_parts(
        model: Any,
        params: Params,
        context_ids: Any,
        *,
        memory: Any = None,
        **options: Any,
    ) -> Any:
        context_ids = model.check_context(params, context_ids, model.write_positions)
        batch_size, length = context_ids.shape
        num_devices = _count_devices(batch_size)
        num_parts = count_micro_batches(AUTOMATIC, batch_size // num_devices, length)
        if num_parts == 1 or _in_part.get():
            return write(model, params, context_ids, memory=memory, **options)
        if memory is not None:
            model.check_memory(params, memory, batch_size)
        split = lambda x: jnp.moveaxis(x.reshape(-1, num_parts, *x.shape[1:]), 1, 0)
        part_of_memory = lambda part: write(model, params, part[0], memory=part[1], **options)
        memory, info = jax.lax.map(part_of_memory, jax.tree.map(split, (context_ids, memory)))
        join = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch_size, *x.shape[2:])
        join_last = lambda x: jnp.moveaxis(x, 0, -1).reshape(*x.shape[1:-1], batch_size)
        return jax.tree.map(join, memory), jax.tree.map(join_last, info)

    return cast(WriteFn, write_parts)
