"""Language models that carry a state of fixed size from token to token."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.checks import is_symbolic
from gradmem_jax.lm.language_model import LanguageModel
from gradmem_jax.parallel.any_mesh import vary_like
from gradmem_jax.trees import PyTree


class RecurrentLM(LanguageModel):
    """A language model whose layers map `(x, real, state)` to `(x, state)`.

    `real` is bool [B, S]: padding, on the right only, leaves the state alone. A layer that gets no
    state starts from its own first one.

    Examples:
        >>> config = gradmem_jax.MambaConfig(vocab_size=10, width=8, num_layers=1)
        >>> isinstance(lm.make_lm(config), lm.RecurrentLM)
        True
    """

    def __call__(
        self, embeddings: jax.Array, *, real: jax.Array | None = None, state: PyTree = None
    ) -> tuple[jax.Array, PyTree]:
        """Runs the layers.

        Args:
            embeddings: [B, S, d].
            real: bool [B, S], false on padding; all real by default.
            state: what an earlier call returned; the first state by default.

        Returns:
            Final hidden states [B, S, d], and the state after the last real token of each sample,
            leaves [L, B, ...].
        """
        real = jnp.ones(embeddings.shape[:2], bool) if real is None else real
        return self.run_layers(embeddings, real, state)


def causal_convolution(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, past: jax.Array, real: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A short convolution over time, of each channel by itself.

    Args:
        x: [B, S, E].
        kernel: [k, E], the last row for the newest token.
        bias: [E].
        past: [B, k - 1, E], the inputs before x.
        real: bool [B, S], false on padding.

    Returns:
        [B, S, E], and the last k - 1 real inputs.

    Examples:
        >>> x = jnp.arange(4.0).reshape(1, 4, 1)  # [B, S, E]
        >>> real = jnp.array([[True, True, True, False]])
        >>> y, past = lm.causal_convolution(
        ...     x, jnp.ones((2, 1)), jnp.zeros(1), past=jnp.zeros((1, 1, 1)), real=real
        ... )
        >>> y[0, :3, 0].tolist(), past.tolist()
        ([0.0, 1.0, 3.0], [[[2.0]]])
    """
    length, size = x.shape[1], kernel.shape[0]
    inputs = jnp.concatenate([past.astype(x.dtype), x], axis=1)
    kernel, bias = (w.astype(x.dtype)[..., None, None, :] for w in (kernel, bias))
    y = sum(inputs[:, j : j + length] * kernel[j] for j in range(size))

    def newest(row: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(row, start, size - 1)

    return y + bias, jax.vmap(newest)(inputs, real.sum(axis=1))


def conv_init(key: jax.Array, shape: tuple[int, int], dtype: str) -> jax.Array:
    """Uniform with a bound of 1 / sqrt(k)."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def count_chunks(length: int, chunk_size: int) -> tuple[int, int]:
    """Tokens of a chunk, no more than there are if their number is known; and how many chunks."""
    size = chunk_size if is_symbolic(length) else min(chunk_size, length)
    return size, -(-length // size)


def scan_chunks(
    one_chunk: Callable[[Any, Any], tuple[Any, jax.Array]], state: Any, inputs: Any, chunk_size: int
) -> tuple[jax.Array, Any]:
    """Scans over chunks of tokens; the backward pass makes the insides of a chunk again.

    Args:
        one_chunk: from a state and inputs [B, C, ...] to the next state and outputs [B, C, ...],
            where C is that of `count_chunks`. Zeros fill up the last chunk.
        state: before the first token.
        inputs: pytree of arrays [B, S, ...].
        chunk_size: tokens of a chunk.

    Returns:
        Outputs [B, S, ...], and the state after the last token.

    Examples:
        >>> def sums(total, x):  # [B], [B, C]
        ...     sums = total[:, None] + jnp.cumsum(x, axis=1)
        ...     return sums[:, -1], sums
        >>> outputs, total = lm.scan_chunks(sums, jnp.zeros(1), jnp.ones((1, 5)), chunk_size=2)
        >>> outputs.tolist()
        [[1.0, 2.0, 3.0, 4.0, 5.0]]
    """
    batch_size, length = jax.tree.leaves(inputs)[0].shape[:2]
    size, number = count_chunks(length, chunk_size)

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, number * size - length), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch_size, number, size, *x.shape[2:]), 1, 0)

    state = vary_like(state, inputs)
    state, outputs = jax.lax.scan(jax.checkpoint(one_chunk), state, jax.tree.map(chunks, inputs))
    outputs = jnp.moveaxis(outputs, 0, 1)
    return outputs.reshape(batch_size, number * size, *outputs.shape[3:])[:, :length], state
