"""Parts of a batch that are processed one after the other."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.checks import AUTOMATIC, require, require_count
from gradmem_jax.trees import Params, PyTree

_CPU_TOKENS = 700  # of a part on CPU: fewer cost more calls, more do not stay in its caches


def count_micro_batches(num_micro_batches: int, batch_size: int, num_tokens: int) -> int:
    """Returns into how many parts a batch is to be split.

    Args:
        num_micro_batches: how many. `AUTOMATIC` is 1 on accelerators, which large batches fill, and
            on CPU so many that a part has some 700 tokens, whatever the model (measured:
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

    Args:
        function: `(part of the batch) -> sums over the part`.
        batch: arrays [B, ...].
        num_parts: from `count_micro_batches`.
    """
    if num_parts == 1:
        return function(batch)
    parts = _split(batch, num_parts)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts)),
    )
    add = lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None)
    return jax.lax.scan(add, zeros, parts)[0]


def in_parts(
    function: Callable[[Params, PyTree], Any], num_parts: int
) -> Callable[[Params, PyTree], Any]:
    """A function of parameters and arrays [B, ...] that takes one part after the other.

    Args:
        function: `(params, batch) -> results`, arrays [B, ...] without sums over the batch.
        num_parts: from `count_micro_batches`.
    """
    if num_parts == 1:
        return function

    def whole(params: Params, batch: PyTree) -> Any:
        results = jax.lax.map(lambda part: function(params, part), _split(batch, num_parts))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

    return whole


def _split(batch: PyTree, num_parts: int) -> PyTree:
    return jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
