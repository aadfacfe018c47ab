"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

import jax
from flax import linen as nn

from gradmem_jax.config import LlamaConfig
from gradmem_jax.lm.attention import AttentionState, rotary_frequencies, rotate
from gradmem_jax.lm.language_model import rms_norm, swiglu
from gradmem_jax.lm.transformer import Places, Transformer, self_attention


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, places: Places, state: AttentionState
    ) -> tuple[jax.Array, AttentionState]:
        """Maps x [B, S, d] to [B, S, d]; see `self_attention`."""
        c = self.config
        frequencies = rotary_frequencies(c.head_size, c.rope_base, c.rope_scaling)
        turn = lambda x, positions: rotate(x, positions, frequencies)
        return self_attention(c, x, places, state, turn=turn)


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, places: Places, state: AttentionState
    ) -> tuple[jax.Array, AttentionState]:
        """Maps x [B, S, d] to [B, S, d]."""
        c = self.config
        y, new = Attention(c, name="attention")(rms_norm(c, "attention_norm")(x), places, state)
        x = x + y
        return x + swiglu(c, c.mlp_size, rms_norm(c, "mlp_norm")(x)), new


class Llama(Transformer):
    """A Llama; see `Transformer`."""

    config: LlamaConfig
    layer_class = Block
