"""The outer loss of a batch and its metrics."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gradmem_jax.checks import AUTOMATIC
from gradmem_jax.losses import IGNORE, token_losses
from gradmem_jax.memory.interface import Memory, MemoryModel
from gradmem_jax.memory.segments import outer_write_loss, write_context
from gradmem_jax.trees import Params

MOST_NORMS = 8  # WRITE steps that have a metric of their own
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def batch_totals(batch: Batch) -> dict[str, jax.Array]:
    """Counts what the means of a batch are taken over: targets, values, queries and samples."""
    valid = valid_samples(batch)
    targets = (batch["labels"] >= 0) & per_query(valid, batch["labels"])
    values = batch.get("value_mask", targets) & targets

    def count(x: jax.Array) -> jax.Array:
        return jnp.maximum(x.sum(), 1).astype(jnp.float32)

    return {
        "targets": count(targets),
        "values": count(values),
        "queries": count(values.any(axis=-1)),
        "samples": count(valid),
    }


def valid_samples(batch: Batch) -> jax.Array:
    """Which samples count: bool [B]."""
    return batch.get("valid", jnp.ones(batch["labels"].shape[0], bool))


def per_query(valid: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes bool [B] to broadcast against [B, Q] or [B, R, Q]."""
    return valid.reshape(-1, *[1] * (like.ndim - 1))


def loss_and_metrics(
    model: MemoryModel,
    params: Params,
    batch: Batch,
    *,
    totals: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, Metrics]:
    """Outer loss of a batch: mean READ loss of the targets, plus the weighted WRITE loss.

    Args:
        model: the model.
        params: its parameters.
        batch: context_ids int [B, S], or [B, T, S] in T segments; query_ids int [B, Q] or
            [B, R, Q], the target included; labels like query_ids, negative where there is no
            target; optionally value_mask, bool like labels, the targets that exact match looks at
            (default: all), and valid, bool [B], false for samples that only fill up the batch.
        totals: what to divide sums by, from `batch_totals` of the whole batch if this is a part.

    Returns:
        The loss, and means over the batch: loss, read_loss, write_loss (see `outer_write_loss`),
        exact_match, token_accuracy, write_gradient_norm (of the whole memory, over the steps), and
        write_gradient_norm_1 to _K, of each step, or of the first `MOST_NORMS`.

    Examples:
        >>> from gradmem_jax.training.losses import loss_and_metrics
        >>> batch = {"context_ids": context_ids, "query_ids": query_ids, "labels": query_ids}
        >>> loss, metrics = jax.jit(loss_and_metrics, static_argnums=0)(model, params, batch)
        >>> loss.shape, sorted(metrics)[:3]
        ((), ['exact_match', 'loss', 'read_loss'])
    """
    totals = totals or batch_totals(batch)
    context_ids = batch["context_ids"]
    memory, info = write_context(model, params, context_ids)
    read_loss, metrics, _ = read_loss_and_metrics(model, params, memory, batch, totals)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.where(valid_samples(batch), x, 0).sum() / totals["samples"]

    write_loss = mean(outer_write_loss(model, context_ids, info))
    norms = [norm for norm in jax.tree.leaves(info.gradient_norms) if norm.size]
    loss = read_loss + model.config.inner_loss_weight * write_loss
    metrics |= {"loss": loss, "write_loss": write_loss, "write_gradient_norm": jnp.float32(0)}
    if norms:
        norm = functools.reduce(jnp.hypot, norms)  # [K, B] or [T, K, B]
        metrics["write_gradient_norm"] = mean(norm.reshape(-1, context_ids.shape[0]).mean(axis=0))
        by_step = norm.reshape(-1, *norm.shape[-2:]).mean(axis=0)[:MOST_NORMS]
        for k, values in enumerate(by_step, 1):
            metrics[f"write_gradient_norm_{k}"] = mean(values)
    return loss, jax.tree.map(jax.lax.stop_gradient, metrics)


def read_loss_and_metrics(
    model: MemoryModel,
    params: Params,
    memory: Memory,
    batch: Batch,
    totals: Mapping[str, jax.Array],
) -> tuple[jax.Array, Metrics, jax.Array]:
    """READ loss, metrics, and which queries match exactly, bool [B] or [B, R]."""
    labels = jnp.where(per_query(valid_samples(batch), batch["labels"]), batch["labels"], IGNORE)
    values = batch.get("value_mask", labels >= 0) & (labels >= 0)
    logits = model.read_memory(params, memory, batch["query_ids"])[..., :-1, :]
    loss = token_losses(logits, labels).sum() / totals["targets"]
    correct = logits.argmax(-1) == labels
    exact = jnp.where(values, correct, True).all(axis=-1) & values.any(axis=-1)
    return (
        loss,
        {
            "read_loss": loss,
            "exact_match": exact.sum().astype(jnp.float32) / totals["queries"],
            "token_accuracy": (correct & values).sum().astype(jnp.float32) / totals["values"],
        },
        exact,
    )


def tokens_of_sample(batch: Batch) -> int:
    """How many tokens a sample has, context and queries."""
    return batch["context_ids"].shape[-1] + math.prod(batch["query_ids"].shape[1:])


def written_whole(model: MemoryModel) -> MemoryModel:
    """The model for a part of a batch, which WRITE splits no further unless it was told to."""
    if model.num_write_parts != AUTOMATIC:
        return model
    return dataclasses.replace(model, num_write_parts=1)
