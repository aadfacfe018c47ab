"""Parts of a batch that are processed one after the other."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.checks import AUTOMATIC, is_symbolic, require, require_count
from gradmem_jax.trees import PyTree

_CPU_TOKENS = 500  # of a part on CPU: fewer cost more calls, more do not stay in its caches


def count_micro_batches(
    num_micro_batches: int,
    batch_size: int,
    num_tokens: int,
    platform: str = "cpu",
    name: str = "num_micro_batches",
    num_write_parts: int = AUTOMATIC,
) -> int:
    """Returns into how many parts a batch is to be split.

    Args:
        num_micro_batches: how many. `AUTOMATIC` is 1 on accelerators, which large batches fill, and
            on CPU so many that a part has some 500 tokens, whatever the model (measured:
            docs/notebook.md, "A step on CPU").
        batch_size: of what is split: one device's part of a training batch, or a whole WRITE.
        num_tokens: of a sample, context and queries.
        platform: of the devices: "cpu", "gpu", "tpu", ...
        name: what a refusal calls the number.
        num_write_parts: into how many parts WRITE splits each of them.

    Raises:
        ValueError: the number does not divide B, or `num_write_parts` does not divide a part.
    """
    multiple = 1 if num_write_parts == AUTOMATIC else num_write_parts
    if require_count(name, num_micro_batches) != AUTOMATIC:
        require(
            num_micro_batches == 1 or not is_symbolic(batch_size),
            f"batch size {batch_size} is symbolic, and {name}={num_micro_batches} may not divide "
            "it; set 1, or export a known batch size.",
        )
        require(
            batch_size % num_micro_batches == 0,
            f"batch size {batch_size} is not a multiple of {name}={num_micro_batches}.",
        )
        require(
            batch_size // num_micro_batches % multiple == 0,
            f"batch size {batch_size} is not a multiple of {name}={num_micro_batches} times "
            f"num_write_parts={num_write_parts}.",
        )
        return num_micro_batches
    if platform != "cpu" or is_symbolic(batch_size) or is_symbolic(num_tokens):
        return 1
    if not batch_size:
        return 1

    def distance(size: int) -> float:
        return abs(math.log(size * max(num_tokens, 1) / _CPU_TOKENS))

    sizes = (size for size in range(multiple, batch_size + 1, multiple) if batch_size % size == 0)
    return batch_size // min(sizes, key=distance, default=batch_size)


def sum_over_parts(
    function: Callable[[PyTree], PyTree],
    batch: PyTree,
    num_micro_batches: int,
    num_tokens: int,
    platform: str | None = None,
    num_write_parts: int = AUTOMATIC,
) -> PyTree:
    """Adds up what a function makes of one part after the other of a batch.

    Args:
        function: `(part of the batch) -> sums over the part`.
        batch: arrays [B, ...].
        num_micro_batches: how many parts, see `count_micro_batches`.
        num_tokens: of a sample, context and queries.
        platform: of the devices; None lets the compiler say it.
        num_write_parts: see `count_micro_batches`.
    """
    batch_size = jax.tree.leaves(batch)[0].shape[0]

    def add_up(batch: PyTree, num_parts: int) -> PyTree:
        if num_parts == 1:
            return function(batch)
        parts = jax.tree.map(
            lambda x: x.reshape(num_parts, batch_size // num_parts, *x.shape[1:]), batch
        )
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts)),
        )

        def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, function(part)), None

        return jax.lax.scan(add, zeros, parts)[0]

    count = functools.partial(
        count_micro_batches,
        num_micro_batches,
        batch_size,
        num_tokens,
        num_write_parts=num_write_parts,
    )
    return _by_platform(add_up, batch, count, platform)


def write_in_parts(
    write: Callable[..., tuple[Any, Any]],
    context_ids: jax.Array,
    memory: Any,
    settings: Any,
    num_write_parts: int,
) -> tuple[Any, Any]:
    """Writes contexts part by part.

    Sample i goes into part i % n of n, so that every part lies on all devices if the batch does.

    Args:
        write: `(context_ids, memory, settings) -> (memory, info)`; leaves of a memory are
            [B, ...], of an info [..., B].
        context_ids: int [B, S].
        memory: where to start, or None.
        settings: more arrays [B, ...], or None.
        num_write_parts: how many parts, see `count_micro_batches`.
    """
    batch_size, length = context_ids.shape

    def write_parts(batch: tuple[jax.Array, Any, Any], num_parts: int) -> tuple[Any, Any]:
        if num_parts == 1:
            return write(*batch)
        rows = batch_size // num_parts
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(rows, num_parts, *x.shape[1:]), 1, 0), batch
        )
        memory, info = jax.lax.map(lambda part: write(*part), parts)
        return (
            jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch_size, *x.shape[2:]), memory),
            jax.tree.map(
                lambda x: jnp.moveaxis(x, 0, -1).reshape(*x.shape[1:-1], batch_size), info
            ),
        )

    rows = batch_size if num_write_parts != AUTOMATIC else batch_size // _num_devices(batch_size)
    count = functools.partial(
        count_micro_batches, num_write_parts, rows, length, name="num_write_parts"
    )
    return _by_platform(write_parts, (context_ids, memory, settings), count)


def _by_platform(
    function: Callable[[PyTree, int], PyTree],
    batch: PyTree,
    count: Callable[..., int],
    platform: str | None = None,
) -> PyTree:
    """Calls `function(batch, count(platform=platform))`; None: the one that is compiled for."""
    if platform is not None:
        return function(batch, count(platform=platform))
    on_cpu, elsewhere = count(platform="cpu"), count(platform="other")
    if on_cpu == elsewhere:
        return function(batch, on_cpu)
    return jax.lax.platform_dependent(
        batch,
        cpu=lambda batch: function(batch, on_cpu),
        default=lambda batch: function(batch, elsewhere),
    )


def _num_devices(batch_size: int) -> int:
    """Over how many CPU devices a batch of this size may lie, unless it has been split already."""
    if is_symbolic(batch_size) or jax.sharding.get_abstract_mesh().manual_axes:
        return 1
    try:
        num_devices = jax.device_count("cpu")
    except RuntimeError:  # JAX may not use the CPU
        return 1
    return 1 if batch_size % num_devices else num_devices
