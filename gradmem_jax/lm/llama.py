"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

import dataclasses
from typing import ClassVar

import jax
from flax import linen as nn

from gradmem_jax.checks import require, require_integer, require_number
from gradmem_jax.lm.attention import AttentionState, RopeScaling, rotary_frequencies, rotate
from gradmem_jax.lm.language_model import layer_swiglu, rms_norm
from gradmem_jax.lm.transformer import (
    AttentionInputs,
    Transformer,
    TransformerConfig,
    self_attention,
)


@dataclasses.dataclass(frozen=True)
class LlamaConfig(TransformerConfig):
    """A Llama language model; the defaults are the model of the paper's KV retrieval runs.

    Attributes:
        num_kv_heads: key and value heads (grouped-query attention); None means `num_heads`.
        head_width: size of one head; None means `width // num_heads`.
        rope_base: base of the rotary frequencies.
        rope_scaling: optional stretching of the rotary frequencies.
    """

    num_kv_heads: int | None = None
    head_width: int | None = None
    rope_base: float = 500_000.0
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_kv_heads", "head_width"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), 1)
        require(
            self.num_heads % self.kv_heads == 0,
            f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.kv_heads}.",
        )
        require(
            self.head_size % 2 == 0,
            f"head_width={self.head_size} must be even: rotary embedding turns pairs.",
        )
        require_number("rope_base", self.rope_base, above=0)

    @property
    def has_own_head_width(self) -> bool:
        """Whether heads may have another width than their share of the model's."""
        return self.head_width is not None

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads if self.head_width is None else self.head_width


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: AttentionInputs, state: AttentionState
    ) -> tuple[jax.Array, AttentionState]:
        """Maps x [B, S, d] to [B, S, d]; see `self_attention`."""
        c = self.config
        frequencies = rotary_frequencies(c.head_size, c.rope_base, c.rope_scaling)

        def rotary(x: jax.Array, positions: jax.Array) -> jax.Array:
            return rotate(x, positions, frequencies)

        return self_attention(c, x, inputs, state, rotary=rotary)


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: AttentionInputs, state: AttentionState
    ) -> tuple[jax.Array, AttentionState]:
        """Maps x [B, S, d] to [B, S, d]."""
        c = self.config
        y, new = Attention(c, name="attention")(rms_norm(c, "attention_norm")(x), inputs, state)
        x = x + y
        return x + layer_swiglu(self, rms_norm(c, "mlp_norm")(x)), new


class Llama(Transformer):
    """A Llama; see `Transformer`."""

    config: LlamaConfig
    attends_apart: ClassVar[bool] = True
    layer_class = Block
