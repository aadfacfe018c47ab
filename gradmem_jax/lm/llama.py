"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradmem_jax.config import LlamaConfig
from gradmem_jax.lm.attention import (
    KVCache,
    append_to_cache,
    attend,
    rotary_frequencies,
    rotate,
)
from gradmem_jax.lm.language_model import LanguageModel, dense, rms_norm, swiglu

CachedKV = tuple[jax.Array, jax.Array] | None


class Places(NamedTuple):
    """Where the tokens of a sequence stand.

    Attributes:
        positions: int [S] or [B, S].
        mask: bool, broadcastable to [B, 1, S, T], true where a query sees a key.
    """

    positions: jax.Array
    mask: jax.Array


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, places: Places, cached: CachedKV
    ) -> tuple[jax.Array, CachedKV]:
        """Maps x [B, S, d] to [B, S, d]; `cached` holds keys and values [B, T, Hkv, Dh]."""
        c = self.config
        positions = places.positions
        frequencies = rotary_frequencies(c.head_size, c.rope_base, c.rope_scaling)
        query = rotate(dense(c, (c.num_heads, c.head_size), "query")(x), positions, frequencies)
        key = rotate(dense(c, (c.kv_heads, c.head_size), "key")(x), positions, frequencies)
        value = dense(c, (c.kv_heads, c.head_size), "value")(x)
        if cached is not None:
            key = append_to_cache(cached[0], key, positions[:, 0])
            value = append_to_cache(cached[1], value, positions[:, 0])
            cached = (key, value)
        y = attend(query, key, value, places.mask)
        return dense(c, c.width, "output", axis=(-2, -1))(y), cached


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, places: Places, cached: CachedKV
    ) -> tuple[jax.Array, CachedKV]:
        """Maps x [B, S, d] to [B, S, d]."""
        c = self.config
        y, cached = Attention(c, name="attention")(rms_norm(c, "attention_norm")(x), places, cached)
        x = x + y
        return x + swiglu(c, c.mlp_size, rms_norm(c, "mlp_norm")(x)), cached


class Llama(LanguageModel):
    """A Llama; see `LanguageModel`."""

    config: LlamaConfig
    layer_class = Block

    def __call__(
        self,
        embeddings: jax.Array,
        *,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the layers.

        Args:
            embeddings: [B, S, d].
            positions: int [S] or [B, S]; by default they go on from the cache, or from 0. With a
                cache only the default works.
            mask: bool, broadcastable to [B, 1, S, T], true where a query sees a key; causal by
                default.
            cache: keys and values of earlier tokens; the new ones are appended.

        Returns:
            Final hidden states [B, S, d], ready for an output projection, and the grown cache.
        """
        places = find_places(embeddings.shape[1], cache, positions, mask)
        if cache is None:
            return self.run_layers(embeddings, places, None)[0], None
        hidden, (keys, values) = self.run_layers(embeddings, places, (cache.keys, cache.values))
        return hidden, KVCache(keys, values, cache.length + embeddings.shape[1])

    def empty_cache(self, batch_size: int, length: int) -> KVCache:
        """Returns a cache with room for `length` tokens of each of `batch_size` samples."""
        c = self.config
        shape = (c.num_layers, batch_size, length, c.kv_heads, c.head_size)
        empty = jnp.zeros(shape, c.dtype)
        return KVCache(empty, empty, jnp.zeros(batch_size, jnp.int32))


def find_places(
    length: int,
    cache: KVCache | None,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> Places:
    """Positions that go on from the cache, or from 0, and a causal mask, unless they are given."""
    slots, room = jnp.arange(length)[None], length
    if cache is not None:
        slots, room = slots + cache.length[:, None], cache.keys.shape[2]
    return Places(
        slots if positions is None else positions,
        jnp.arange(room) <= slots[:, None, :, None] if mask is None else mask,
    )
