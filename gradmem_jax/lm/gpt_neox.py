"""GPT-NeoX (Pythia): rotary positions on a part of each head, attention beside the MLP."""

import dataclasses
from typing import ClassVar

import jax
from flax import linen as nn

from gradmem_jax.checks import require, require_number
from gradmem_jax.lm.attention import AttentionState
from gradmem_jax.lm.language_model import layer_gelu, layer_norm
from gradmem_jax.lm.rotary import rotary_frequencies, rotate
from gradmem_jax.lm.transformer import (
    AttentionInputs,
    Transformer,
    TransformerConfig,
    self_attention,
)


@dataclasses.dataclass(frozen=True)
class GPTNeoXConfig(TransformerConfig):
    """A GPT-NeoX language model, such as Pythia.

    Attributes:
        rope_base: base of the rotary frequencies.
        rotary_fraction: share of each head that is rotated, from its start.
        parallel_residual: whether attention and MLP read the same stream, instead of the MLP
            reading what attention has added to it.

    Examples:
        >>> config = gradmem_jax.GPTNeoXConfig(vocab_size=10, width=16, num_layers=1, num_heads=2)
        >>> config.rotary_fraction, config.parallel_residual
        (0.25, True)
    """

    rope_base: float = 10_000.0
    rotary_fraction: float = 0.25
    parallel_residual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("rope_base", self.rope_base, above=0)
        require_number("rotary_fraction", self.rotary_fraction, above=0)
        require(
            self.rotary_fraction <= 1 and self.rotary_width > 0 and self.rotary_width % 2 == 0,
            f"rotary_fraction={self.rotary_fraction} rotates {self.rotary_width} of the "
            f"{self.head_size} components of a head; it must be an even number of them.",
        )

    @property
    def rotary_width(self) -> int:
        """Components of a head that are rotated."""
        return int(self.head_size * self.rotary_fraction)


class GPTNeoXLayer(nn.Module):
    """One layer: attention and MLP read the same stream, or one after the other."""

    config: GPTNeoXConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: AttentionInputs, state: AttentionState
    ) -> tuple[jax.Array, AttentionState]:
        """Maps x [B, S, d] to [B, S, d]; see `Transformer`."""
        c = self.config
        frequencies = rotary_frequencies(c.rotary_width, c.rope_base)

        def rotary(x: jax.Array, positions: jax.Array) -> jax.Array:
            return rotate(x, positions, frequencies)

        y = layer_norm(c, "attention_norm")(x)
        y, new = self_attention(c, y, inputs, state, rotary=rotary, use_bias=True)
        attended = x + y
        y = layer_norm(c, "mlp_norm")(x if c.parallel_residual else attended)
        return attended + layer_gelu(self, y, approximate=False), new


class GPTNeoX(Transformer):
    """A GPT-NeoX; see `Transformer`.

    Examples:
        >>> config = gradmem_jax.GPTNeoXConfig(vocab_size=10, width=16, num_layers=1, num_heads=2)
        >>> lm.make_lm(config) == lm.GPTNeoX(config)
        True
    """

    config: GPTNeoXConfig
    attends_apart: ClassVar[bool] = True
    layer_class = GPTNeoXLayer

    def make_final_norm(self) -> nn.Module:
        """The norm behind the last layer."""
        return layer_norm(self.config)
