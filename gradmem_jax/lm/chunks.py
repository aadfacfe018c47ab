"""A recurrence that takes its tokens in chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan_chunks(
    one_chunk: Callable[[Any, Any], tuple[Any, jax.Array]], state: Any, inputs: Any, chunk_size: int
) -> tuple[jax.Array, Any]:
    """Scans over chunks of tokens; the backward pass makes the insides of a chunk again.

    Args:
        one_chunk: from a state and inputs [B, C, ...] to the next state and outputs [B, C, ...],
            where C is `chunk_size`, or S if that is less. Zeros fill up the last chunk.
        state: before the first token.
        inputs: pytree of arrays [B, S, ...].
        chunk_size: tokens of a chunk.

    Returns:
        Outputs [B, S, ...], and the state after the last token.
    """
    batch_size, length = jax.tree.leaves(inputs)[0].shape[:2]
    size = min(chunk_size, length)

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch_size, -1, size, *x.shape[2:]), 1, 0)

    state, outputs = jax.lax.scan(jax.checkpoint(one_chunk), state, jax.tree.map(chunks, inputs))
    outputs = jnp.moveaxis(outputs, 0, 1)
    return outputs.reshape(batch_size, -1, *outputs.shape[3:])[:, :length], state
