"""Cross entropy over the tokens that count."""

import jax
import jax.numpy as jnp

from gradmem_jax.dtypes import at_least_float32

IGNORE = -100


def token_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of every token, zero where there is no target.

    Args:
        logits: [..., V]; computed with in float32 at least.
        labels: int [...], token ids; negative (`IGNORE`) where there is no target.

    Returns:
        [...], in nats.
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(labels >= 0, log_normalizer - target, 0)


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
