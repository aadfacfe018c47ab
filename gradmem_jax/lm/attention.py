"""Rotary positions, causal attention and the key-value cache."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.config import RopeScaling


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Attributes:
        keys: [L, B, T, Hkv, Dh], room for T tokens a sample.
        values: [L, B, T, Hkv, Dh].
        length: int32 [B], how many of the T slots hold tokens of each sample.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array


CachedKV = tuple[jax.Array, jax.Array] | None

MIN_BLOCK = 64  # queries of a causal block: smaller ones skip more keys, but cost more calls
MAX_BLOCKS = 8
LONGEST_SAVED = 1024  # beyond it backward passes compute a block again, not keep its weights


def rotary_frequencies(
    head_width: int, base: float, scaling: RopeScaling | None = None
) -> np.ndarray:
    """Returns the angle per position of every rotated pair, float64 [Dh / 2].

    Args:
        head_width: Dh.
        base: base of the geometric series of frequencies.
        scaling: optional stretching, see `RopeScaling`.
    """
    frequencies = base ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rotate(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Rotary position embedding, component i paired with i + Dh / 2 (as Llama checkpoints are).

    Args:
        x: [B, S, H, Dh].
        positions: int [S] or [B, S].
        frequencies: [Dh / 2].

    Returns:
        [B, S, H, Dh], dtype of x.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angles = positions[..., None].astype(dtype) * jnp.asarray(frequencies, dtype)
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Softmax attention that can be differentiated any number of times, in any mode and dtype.

    `jax.nn.dot_product_attention` rounds to float32 even what is float64, which would hide errors
    from the tests by central differences.

    Args:
        query: [B, S, H, Dh].
        key: [B, T, Hkv, Dh], Hkv divides H.
        value: [B, T, Hkv, Dh].
        mask: bool, broadcastable to [B, 1, S, T], true where a query sees a key. None is causal
            self-attention, S = T: queries go in blocks that skip the keys behind them.

    Returns:
        [B, S, H, Dh], dtype of query.
    """
    length, kv_heads = query.shape[1], key.shape[2]
    grouped = query.reshape(*query.shape[:2], kv_heads, -1, query.shape[-1])
    grouped = jnp.moveaxis(grouped, 1, 3)
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    if mask is not None:
        y = _attend_block(grouped, key, value, mask[..., None, :, :])
    else:
        block = jax.checkpoint(_attend_block) if length > LONGEST_SAVED else _attend_block
        parts = []
        for start, end in causal_blocks(length):
            seen = jnp.arange(end) <= jnp.arange(start, end)[:, None]
            rows = grouped[..., start:end, :]
            parts.append(block(rows, key[:, :, :end], value[:, :, :end], seen))
        y = jnp.concatenate(parts, axis=3)
    return jnp.moveaxis(y, 3, 1).reshape(query.shape)


def causal_blocks(length: int) -> list[tuple[int, int]]:
    """First and last + 1 query of each block of causal attention; it sees keys up to its last."""
    size = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _attend_block(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention of queries [B, Hkv, G, S, Dh] to keys and values [B, Hkv, T, Dh]."""
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum(
        "bkgsd,bktd->bkgst", query * query.shape[-1] ** -0.5, key, preferred_element_type=dtype
    )
    scores = jnp.where(mask, scores, jnp.finfo(dtype).min)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))  # the result ignores shifts
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bkgst,bktd->bkgsd", weights.astype(value.dtype), value, preferred_element_type=dtype
    )
    return (mixed / total).astype(query.dtype)


def make_cache(keys: jax.Array, values: jax.Array, length: jax.Array, room: int) -> KVCache:
    """Makes a cache of a memory's keys and values.

    Args:
        keys: [B, L, T, Hkv, Dh].
        values: [B, L, T, Hkv, Dh].
        length: int32 [B], how many of the T hold tokens of each sample.
        room: how many tokens may follow.

    Returns:
        A cache with T + room slots.
    """
    grow = lambda x: jnp.pad(jnp.moveaxis(x, 1, 0), ((0, 0), (0, 0), (0, room), (0, 0), (0, 0)))
    return KVCache(grow(keys), grow(values), length)


def append_to_cache(cached: jax.Array, new: jax.Array, length: jax.Array) -> jax.Array:
    """Writes `new` behind the first `length` tokens of every sample.

    Args:
        cached: [B, T, Hkv, Dh].
        new: [B, S, Hkv, Dh].
        length: int32 [B].

    Returns:
        [B, T, Hkv, Dh].
    """
    write = lambda row, update, start: jax.lax.dynamic_update_slice_in_dim(row, update, start, 0)
    return jax.vmap(write)(cached, new.astype(cached.dtype), length)


def extend(
    cached: CachedKV, key: jax.Array, value: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, CachedKV]:
    """Puts new keys and values behind those of a cache, if there is one.

    Args:
        cached: keys and values [B, T, Hkv, Dh], or None.
        key: [B, S, Hkv, Dh].
        value: [B, S, Hkv, Dh].
        positions: int [B, S], of the new tokens.

    Returns:
        The keys and values to attend to, and the grown cache.
    """
    if cached is None:
        return key, value, None
    key = append_to_cache(cached[0], key, positions[:, 0])
    value = append_to_cache(cached[1], value, positions[:, 0])
    return key, value, (key, value)
