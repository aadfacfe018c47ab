"""Cross entropy over the tokens that count."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradmem_jax.checks import is_symbolic
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.token_chunks import join_tokens, split_tokens

IGNORE = -100
LARGEST_LOGITS = 2**27  # bytes of logits that are made at once
CHUNK_LOGITS = 2**25  # bytes of a chunk of more
SHORTEST_CHUNK = 16  # tokens of a sample


def token_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of every token, zero where there is no target.

    Args:
        logits: [..., V]; computed with in float32 at least.
        labels: int [...], token ids; negative (`IGNORE`) where there is no target.

    Returns:
        [...], in nats.

    Examples:
        >>> from gradmem_jax.losses import token_losses
        >>> logits = jnp.zeros((1, 2, 10))  # [B, S, V]
        >>> losses = token_losses(logits, jnp.array([[3, -100]]))  # the second has no target
        >>> [round(float(loss), 2) for loss in losses[0]]
        [2.3, 0.0]
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(labels >= 0, log_normalizer - target, 0)


def losses_of_hidden(
    project: Callable[[jax.Array], jax.Array], hidden: jax.Array, labels: jax.Array
) -> jax.Array:
    """Cross entropy of every token, from hidden states: no more logits at once than need be.

    Beyond `LARGEST_LOGITS` they are made for some tokens after the others, and again where they are
    differentiated, so that no array [B, S, V] ever is.

    Args:
        project: `hidden [B, s, d] -> logits [B, s, V]`, token by token.
        hidden: [B, S, d].
        labels: int [B, S], negative where there is no target.

    Returns:
        [B, S], in nats; see `token_losses`.
    """

    def losses(hidden: jax.Array, labels: jax.Array) -> jax.Array:
        return token_losses(project(hidden), labels)

    batch_size, length, width = hidden.shape
    if is_symbolic(batch_size) or is_symbolic(length):
        return losses(hidden, labels)
    logits = jax.eval_shape(project, hidden)
    num_bytes = logits.size * logits.dtype.itemsize
    # Each chunk adds to the gradient of the head [d, V], so it should have about d / 4 rows.
    rows = -(-width // (4 * max(batch_size, 1)))
    size = max(CHUNK_LOGITS * length // max(num_bytes, 1), rows, SHORTEST_CHUNK)
    if num_bytes <= LARGEST_LOGITS or length <= size:
        return losses(hidden, labels)
    chunks = (split_tokens(hidden, size), split_tokens(labels, size, IGNORE))
    of_chunk = jax.checkpoint(losses, prevent_cse=False)
    return join_tokens(jax.lax.map(lambda chunk: of_chunk(*chunk), chunks), length)


def mean_per_sample(values: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean of token values [B, S] over the targets of each sample, 0 where it has none.

    Args:
        values: [B, S], zero where there is no target.
        labels: int [B, S], negative where there is no target.

    Returns:
        [B].
    """
    count = jnp.maximum((labels >= 0).sum(axis=-1), 1)
    return values.sum(axis=-1) / count.astype(values.dtype)
