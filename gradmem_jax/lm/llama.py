"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

import functools
from typing import Any

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

_REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def kernel_init(config: LlamaConfig) -> nn.initializers.Initializer:
    """Initialiser of every matrix but the embedding."""
    if config.init == "fan_in":
        return nn.initializers.lecun_normal()
    return nn.initializers.normal(config.init_std)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cached: tuple[jax.Array, jax.Array] | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Maps x [B, S, d] to [B, S, d]; `cached` holds keys and values [B, T, Hkv, Dh]."""
        c = self.config
        project = functools.partial(
            nn.DenseGeneral,
            use_bias=False,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            kernel_init=kernel_init(c),
        )
        frequencies = rotary_frequencies(c.head_size, c.rope_base, c.rope_scaling)
        query = rotate(project((c.num_heads, c.head_size), name="query")(x), positions, frequencies)
        key = rotate(project((c.kv_heads, c.head_size), name="key")(x), positions, frequencies)
        value = project((c.kv_heads, c.head_size), name="value")(x)
        if cached is not None:
            key = append_to_cache(cached[0], key, positions[:, 0])
            value = append_to_cache(cached[1], value, positions[:, 0])
            cached = (key, value)
        y = attend(query, key, value, mask)
        return project(c.width, axis=(-2, -1), name="output")(y), cached


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cached: tuple[jax.Array, jax.Array] | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Maps x [B, S, d] to [B, S, d]."""
        c = self.config
        norm = functools.partial(
            nn.RMSNorm, epsilon=c.norm_epsilon, dtype=c.dtype, param_dtype=c.param_dtype
        )
        dense = functools.partial(
            nn.Dense,
            use_bias=False,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            kernel_init=kernel_init(c),
        )
        y, cached = Attention(c, name="attention")(
            norm(name="attention_norm")(x), positions, mask, cached
        )
        x = x + y
        y = norm(name="mlp_norm")(x)
        gate = nn.silu(dense(c.mlp_size, name="gate")(y))
        return x + dense(c.width, name="down")(gate * dense(c.mlp_size, name="up")(y)), cached


class Llama(nn.Module):
    """The language model in three pieces: `embed`, the layers (`__call__`), `unembed`.

    The pieces let a memory stand in front of the embeddings, and another output projection behind
    the hidden states.
    """

    config: LlamaConfig

    def setup(self) -> None:
        """Declares the parameters."""
        c = self.config
        embedding_std = 1.0 if c.init == "fan_in" else c.init_std
        self.embedding = self.param(
            "embedding",
            nn.initializers.normal(embedding_std),
            (c.vocab_size, c.width),
            c.param_dtype,
        )
        block: Any = Block
        if c.remat != "none":
            block = nn.remat(block, policy=_REMAT_POLICIES[c.remat], prevent_cse=not c.scan_layers)
        if c.scan_layers:
            self.layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, 0),
                length=c.num_layers,
            )(c)
        else:
            self.layers = [block(c) for _ in range(c.num_layers)]
        self.final_norm = nn.RMSNorm(
            epsilon=c.norm_epsilon, dtype=c.dtype, param_dtype=c.param_dtype
        )
        if not c.tied_head:
            self.head = self.param("head", kernel_init(c), (c.width, c.vocab_size), c.param_dtype)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Looks up token embeddings: int [B, S] to [B, S, d] in the compute dtype."""
        return jnp.asarray(self.embedding)[ids].astype(self.config.dtype)

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
        length = embeddings.shape[1]
        slots, room = jnp.arange(length)[None], length
        if cache is not None:
            slots, room = slots + cache.length[:, None], cache.keys.shape[2]
        positions = slots if positions is None else positions
        mask = jnp.arange(room) <= slots[:, None, :, None] if mask is None else mask
        x = embeddings.astype(self.config.dtype)
        cached: Any = None if cache is None else (cache.keys, cache.values)
        if self.config.scan_layers:
            x, cached = self.layers(x, positions, mask, cached)
        else:
            grown = []
            for i, layer in enumerate(self.layers):
                x, kv = layer(
                    x, positions, mask, None if cached is None else (cached[0][i], cached[1][i])
                )
                grown.append(kv)
            if cache is not None:
                cached = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grown)
        if cache is not None:
            cache = KVCache(cached[0], cached[1], cache.length + length)
        return self.final_norm(x), cache

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Projects hidden states [B, S, d] to logits [B, S, V] with the LM head."""
        return hidden @ self.head_kernel().astype(hidden.dtype)

    def head_kernel(self) -> jax.Array:
        """Returns the LM head [d, V]."""
        return self.embedding.T if self.config.tied_head else self.head

    def everything(self, ids: jax.Array) -> jax.Array:
        """Logits [B, S, V] of token ids [B, S]: the plain language model."""
        return self.unembed(self(self.embed(ids))[0])

    def empty_cache(self, batch_size: int, length: int) -> KVCache:
        """Returns a cache with room for `length` tokens of each of `batch_size` samples."""
        c = self.config
        shape = (c.num_layers, batch_size, length, c.kv_heads, c.head_size)
        empty = jnp.zeros(shape, c.dtype)
        return KVCache(empty, empty, jnp.zeros(batch_size, jnp.int32))
