"""Causal language models whose tokens attend to all tokens before them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradmem_jax.config import TransformerConfig
from gradmem_jax.lm.attention import CachedKV, KVCache, append_to_cache, attend
from gradmem_jax.lm.language_model import LanguageModel, dense


class Places(NamedTuple):
    """Where the tokens of a sequence stand.

    Attributes:
        positions: int [S] or [B, S].
        mask: bool, broadcastable to [B, 1, S, S], true where a query sees a key; None is causal.
        seen: bool [B, 1, S, E], true where a query sees one of the first E slots of a cache.
    """

    positions: jax.Array
    mask: jax.Array | None = None
    seen: jax.Array | None = None


def find_places(
    length: int,
    cache: KVCache | None,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> Places:
    """Positions that go on from the cache, or from 0, unless they are given, and what is seen."""
    slots = jnp.arange(length)[None]
    if cache is None:
        return Places(slots if positions is None else positions, mask)
    slots = slots + cache.length[:, None]
    num_earlier = cache.keys.shape[3] - length  # the new tokens need the other slots
    seen = jnp.arange(num_earlier) < cache.length[:, None]
    shape = (len(seen), 1, length, num_earlier)
    seen = jnp.broadcast_to(seen[:, None, None, :], shape)
    return Places(slots if positions is None else positions, mask, seen)


def self_attention(
    config: TransformerConfig,
    x: jax.Array,
    places: Places,
    cached: CachedKV,
    *,
    turn: Callable[[jax.Array], jax.Array] = lambda x: x,
    use_bias: bool = False,
) -> tuple[jax.Array, CachedKV]:
    """Causal self-attention, [B, S, d] to [B, S, d]; its parts are modules of the caller.

    Args:
        config: the model.
        x: [B, S, d].
        places: positions and mask.
        cached: keys and values of earlier tokens [B, Hkv, T, Dh], or None when nobody needs the
            new ones.
        turn: what positions do to queries and keys [B, S, H, Dh].
        use_bias: whether the projections have biases.

    Returns:
        [B, S, d], and keys and values of the new tokens [B, S, Hkv, Dh], or None.
    """
    c = config
    heads = {"query": c.num_heads, "key": c.kv_heads, "value": c.kv_heads}
    query, key, value = (
        dense(c, (number, c.head_size), name, use_bias=use_bias)(x)
        for name, number in heads.items()
    )
    key = turn(key)
    y = attend(turn(query), key, value, places.mask, cached, places.seen)
    new = None if cached is None else (key, value)
    return dense(c, c.width, "output", axis=(-2, -1), use_bias=use_bias)(y), new


class Transformer(LanguageModel):
    """A language model whose layers map `(x, places, cached)` to `(x, new)`.

    `cached` holds keys and values [B, Hkv, T, Dh] of earlier tokens and `new` those of x
    [B, S, Hkv, Dh], or both are None.
    """

    config: TransformerConfig

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
            mask: bool, broadcastable to [B, 1, S, S], true where a query sees a key; causal by
                default.
            cache: keys and values of earlier tokens, with room for S more.

        Returns:
            Final hidden states [B, S, d], ready for an output projection, and the grown cache.
        """
        places = find_places(embeddings.shape[1], cache, positions, mask)
        embeddings = self.add_positions(embeddings, places.positions)
        if cache is None:
            return self.run_layers(embeddings, places, None)[0], None
        hidden, new = self.run_layers(embeddings, places, (cache.keys, cache.values))
        return hidden, append_to_cache(cache, *new)

    def empty_cache(self, batch_size: int, length: int) -> KVCache:
        """Returns a cache with room for `length` tokens of each of `batch_size` samples."""
        c = self.config
        shape = (c.num_layers, batch_size, c.kv_heads, length, c.head_size)
        empty = jnp.zeros(shape, c.dtype)
        return KVCache(empty, empty, jnp.zeros(batch_size, jnp.int32))

    def add_positions(self, embeddings: jax.Array, positions: jax.Array) -> jax.Array:
        """Adds what the model says of positions [S] or [B, S] to embeddings [B, S, d]: nothing."""
        del positions
        return embeddings
