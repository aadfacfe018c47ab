"""GPT-2: learned positions, LayerNorm, biases everywhere, an MLP with GELU."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradmem_jax.config import GPT2Config, LMConfig
from gradmem_jax.lm.attention import CachedKV, attend, extend
from gradmem_jax.lm.language_model import dense
from gradmem_jax.lm.transformer import Places, Transformer


def layer_norm(config: LMConfig, name: str | None = None) -> nn.LayerNorm:
    """The norm in front of a layer's parts."""
    return nn.LayerNorm(
        epsilon=config.norm_epsilon,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        use_fast_variance=False,
        name=name,
    )


class GPT2Layer(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    config: GPT2Config

    @nn.compact
    def __call__(
        self, x: jax.Array, places: Places, cached: CachedKV
    ) -> tuple[jax.Array, CachedKV]:
        """Maps x [B, S, d] to [B, S, d]; see `Transformer`."""
        c = self.config
        y = layer_norm(c, "attention_norm")(x)
        query, key, value = (
            dense(c, (c.num_heads, c.head_size), name, use_bias=True)(y)
            for name in ("query", "key", "value")
        )
        key, value, cached = extend(cached, key, value, places.positions)
        y = attend(query, key, value, places.mask)
        x = x + dense(c, c.width, "output", axis=(-2, -1), use_bias=True)(y)
        y = dense(c, c.mlp_size, "up", use_bias=True)(layer_norm(c, "mlp_norm")(x))
        return x + dense(c, c.width, "down", use_bias=True)(nn.gelu(y, approximate=True)), cached


class GPT2(Transformer):
    """A GPT-2; see `Transformer`."""

    config: GPT2Config
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
        return embeddings + jnp.asarray(self.position_embedding)[positions].astype(embeddings.dtype)
