"""Transformers whose layers each hold a memory, which all tokens read and a WRITE renews."""

import flax.struct
import jax
import jax.numpy as jnp

from gradmem_jax.lm.attention import KVCache, append_to_cache
from gradmem_jax.lm.transformer import AttentionInputs, Transformer, attention_inputs
from gradmem_jax.trees import PyTree


class Segment(flax.struct.PyTreeNode):
    """What the layers know of the tokens of a call.

    Attributes:
        attention: positions and masks.
        real: bool [B, S], false on padding.
        write: whether the layers renew their memory from this segment.
        num_memory_tokens: m, memory tokens at the end of a segment that is written.
    """

    attention: AttentionInputs
    real: jax.Array
    write: bool = flax.struct.field(pytree_node=False)
    num_memory_tokens: int = flax.struct.field(pytree_node=False)


class LayerMemoryLM(Transformer):
    """A Transformer with a memory in every layer.

    Layers map `(x, segment, (memory, cached))` to `(x, (memory, new))`; `cached` are keys and
    values of the tokens before and `new` those of x, or both are None. A layer that gets no memory
    starts from its own first one. Attention sees the tokens of one segment only.
    """

    def __call__(  # type: ignore[override]
        self,
        embeddings: jax.Array,
        *,
        memory: PyTree = None,
        real: jax.Array | None = None,
        write: bool = False,
        num_memory_tokens: int = 0,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, PyTree, KVCache | None]:
        """Runs the layers over one segment.

        Args:
            embeddings: [B, S, d]; with `write` the memory tokens stand at the end.
            memory: memories of the layers, leaves [L, B, ...]; the first ones by default.
            real: bool [B, S], false on padding, which no token sees; all real by default.
            write: whether the layers renew their memory from this segment.
            num_memory_tokens: m.
            cache: keys and values of the segment's earlier tokens, for decoding.

        Returns:
            Final hidden states [B, S, d], the memories, and the grown cache.
        """
        length = embeddings.shape[1]
        real = jnp.ones(embeddings.shape[:2], bool) if real is None else real
        positions = jnp.cumsum(real, axis=1) - 1
        if cache is not None:
            positions = positions + cache.length[:, None]
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool)) & real[:, None, None, :]
        attention = attention_inputs(length, cache, positions, mask)
        if self.window is not None:
            attention = _within(self.window, attention, mask)
        embeddings = self.add_positions(embeddings, attention.positions)
        segment = Segment(attention, real, write, num_memory_tokens)
        cached = None if cache is None else (cache.keys, cache.values)
        hidden, (memory, new) = self.run_layers(embeddings, segment, (memory, cached))
        if cache is not None:
            cache = append_to_cache(cache, *new)
        return hidden, memory, cache

    @property
    def window(self) -> int | None:
        """How many tokens attention sees, the newest one included; None: all of the segment."""
        return None

    def everything(self, ids: jax.Array) -> jax.Array:
        """Logits [B, S, V] of token ids [B, S] with the first memory."""
        hidden, _, _ = self(self.embed(ids), write=True, num_memory_tokens=1)
        return self.unembed(hidden)


def _within(window: int, attention: AttentionInputs, mask: jax.Array) -> AttentionInputs:
    """Has queries see the last `window` tokens only, the newest one included."""
    query = attention.positions[:, None, :, None]

    def near(key: jax.Array) -> jax.Array:
        return query - key < window

    cache_mask = attention.cache_mask
    if cache_mask is not None:
        cache_mask &= near(jnp.arange(cache_mask.shape[-1])[None, None, None])
    mask = mask & near(attention.positions[:, None, None, :])
    return AttentionInputs(attention.positions, mask, cache_mask)
