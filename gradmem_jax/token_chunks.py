"""Arrays of tokens cut into chunks that are processed one after the other."""

from typing import Any

import jax
import jax.numpy as jnp


def split_tokens(x: jax.Array, size: int, fill: Any = 0) -> jax.Array:
    """Cuts [B, S, ...] into [n, B, size, ...], the last chunk filled up with `fill`."""
    batch_size, length = x.shape[:2]
    left = -length % size
    padded = jnp.pad(x, [(0, 0), (0, left)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
    return jnp.swapaxes(padded.reshape(batch_size, -1, size, *x.shape[2:]), 0, 1)


def join_tokens(chunks: jax.Array, length: int) -> jax.Array:
    """Puts chunks [n, B, size, ...] together again: [B, length, ...]."""
    first = jnp.swapaxes(chunks, 0, 1)
    return first.reshape(first.shape[0], -1, *first.shape[3:])[:, :length]
