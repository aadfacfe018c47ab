"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

import jax
from flax import linen as nn

from gradmem_jax.config import LlamaConfig
from gradmem_jax.lm.attention import CachedKV, attend, extend, rotary_frequencies, rotate
from gradmem_jax.lm.language_model import dense, rms_norm, swiglu
from gradmem_jax.lm.transformer import Places, Transformer


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
        key, value, cached = extend(cached, key, value, positions)
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


class Llama(Transformer):
    """A Llama; see `Transformer`."""

    config: LlamaConfig
    layer_class = Block
