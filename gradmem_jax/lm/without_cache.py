"""Language models that keep nothing of what they have read: they decode by running it all again."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class EmbeddingCache(NamedTuple):
    """All that there is to keep: the embeddings so far.

    Attributes:
        embeddings: [B, T, d], a capacity of T tokens a sample.
        length: int32 [B], how many of the T slots hold tokens of each sample.

    Examples:
        >>> cache = lm.EmbeddingCache(embeddings=jnp.zeros((2, 8, 4)), length=jnp.array([3, 5]))
        >>> cache.embeddings.shape  # [B, T, d]
        (2, 8, 4)
    """

    embeddings: jax.Array
    length: jax.Array


class WithoutCache(nn.Module):
    """A language model without a cache, called as a `Transformer` is; parameters are its own.

    The model needs the methods `embed` (ids [B, S] to [B, S, d]), `__call__` ([B, S, d] to hidden
    states [B, S, d], in a tuple or not), `unembed` (hidden states to logits [B, S, V]) and
    `head_kernel` (the output projection [d, V]). No token may depend on a later one.

    Attributes:
        lm: the model.

    Examples:
        >>> net = lm.WithoutCache(lm.make_lm(small))
        >>> net.lm.config.width
        8
    """

    lm: Any

    def setup(self) -> None:
        """Takes the place of the model."""
        nn.share_scope(self, self.lm)

    @property
    def takes_masks(self) -> bool:
        """Whether the model takes the positions and the mask of RMT."""
        names = inspect.signature(type(self.lm).__call__).parameters
        return {"positions", "mask"} <= set(names)

    def __call__(
        self, embeddings: jax.Array, *, cache: EmbeddingCache | None = None, **options: Any
    ) -> tuple[jax.Array, EmbeddingCache | None]:
        """Runs the model over all tokens so far.

        Args:
            embeddings: [B, S, d], the new ones.
            cache: the earlier ones, with a capacity for S more; one of S slots is empty.
            **options: of the model; those that are None are left out.

        Returns:
            Hidden states [B, S, d] of the new tokens, and the grown cache.
        """
        options = {name: value for name, value in options.items() if value is not None}
        if cache is None:
            return self._run(embeddings, options), None
        length = embeddings.shape[1]
        slots = cache.length[:, None] + jnp.arange(length)
        if length == cache.embeddings.shape[1]:
            every = embeddings
        else:
            sample = jnp.arange(embeddings.shape[0])[:, None]
            every = cache.embeddings.at[sample, slots].set(embeddings)
        hidden = jnp.take_along_axis(self._run(every, options), slots[..., None], axis=1)
        return hidden, EmbeddingCache(every, cache.length + length)

    def _run(self, embeddings: jax.Array, options: dict[str, Any]) -> jax.Array:
        result = self.lm(embeddings, **options)
        return result[0] if isinstance(result, tuple) else result

    def embed(self, ids: jax.Array) -> jax.Array:
        """Looks up token embeddings: int [B, S] to [B, S, d] in the compute dtype."""
        return self.lm.embed(ids).astype(self.lm.config.dtype)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Projects hidden states [B, S, d] to logits [B, S, V]."""
        return self.lm.unembed(hidden)

    def head_kernel(self) -> jax.Array:
        """Returns the output projection [d, V]."""
        return self.lm.head_kernel()

    def everything(self, ids: jax.Array) -> jax.Array:
        """Logits [B, S, V] of token ids [B, S]: the plain language model."""
        return self.unembed(self(self.embed(ids))[0])

    def first_layer_attention(self, embeddings: jax.Array, num_before: int) -> None:
        """Nothing is known before all tokens are; see `Transformer.first_layer_attention`."""
        del embeddings, num_before

    def empty_cache(self, batch_size: int, length: int) -> EmbeddingCache:
        """Returns a cache with a capacity of `length` tokens of each of `batch_size` samples."""
        c = self.lm.config
        empty = jnp.zeros((batch_size, length, c.width), c.dtype)
        return EmbeddingCache(empty, jnp.zeros(batch_size, jnp.int32))
