"""GPT-2: learned positions, LayerNorm, biases everywhere, an MLP with GELU."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradmem_jax.lm.attention import AttentionState
from gradmem_jax.lm.language_model import layer_gelu, layer_norm
from gradmem_jax.lm.transformer import (
    AttentionInputs,
    Transformer,
    TransformerConfig,
    self_attention,
)


@dataclasses.dataclass(frozen=True)
class GPT2Config(TransformerConfig):
    """A GPT-2 language model; positions are learned vectors, the head is the embedding.

    Examples:
        >>> config = gradmem_jax.GPT2Config(vocab_size=10, width=8, num_layers=1, num_heads=2)
        >>> config.tied_head
        True
    """

    max_positions: int = 1024
    tied_head: bool = True


class GPT2Layer(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    config: GPT2Config

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: AttentionInputs, state: AttentionState
    ) -> tuple[jax.Array, AttentionState]:
        """Maps x [B, S, d] to [B, S, d]; see `Transformer`."""
        c = self.config
        y = layer_norm(c, "attention_norm")(x)
        y, new = self_attention(c, y, inputs, state, use_bias=True)
        x = x + y
        y = layer_norm(c, "mlp_norm")(x)
        return x + layer_gelu(self, y, approximate=True), new


class GPT2(Transformer):
    """A GPT-2; see `Transformer`.

    Examples:
        >>> net = lm.GPT2(gradmem_jax.GPT2Config(vocab_size=10, width=8, num_layers=1, num_heads=2))
        >>> net.config.max_positions
        1024
    """

    config: GPT2Config
    attends_apart: ClassVar[bool] = True
    layer_class = GPT2Layer

    def setup(self) -> None:
        """Declares the parameters."""
        super().setup()
        c = self.config
        self.position_embedding = self.param(
            "position_embedding",
            nn.initializers.normal(c.init_std),
            (c.max_positions, c.width),
            c.param_dtype,
        )

    def make_final_norm(self) -> nn.Module:
        """The norm behind the last layer."""
        return layer_norm(self.config)

    def add_positions(self, embeddings: jax.Array, positions: jax.Array) -> jax.Array:
        """Adds the learned vectors of positions [S] or [B, S] to embeddings [B, S, d]."""
        vectors = jnp.asarray(self.position_embedding)[jnp.atleast_2d(positions)]
        return embeddings + vectors.astype(embeddings.dtype)
