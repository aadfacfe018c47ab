"""Evaluation of a batch with the context removed, compiled once for all numbers of steps."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradmem_jax.checks import AUTOMATIC
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.memory.segments import write_context, write_token_losses
from gradmem_jax.parallel.micro_batches import sum_over_parts
from gradmem_jax.parallel.sharding import gradient_on_mesh, mesh_compiler_options
from gradmem_jax.training.losses import (
    Batch,
    Metrics,
    batch_totals,
    per_query,
    read_loss_and_metrics,
    tokens_of_sample,
    valid_samples,
    written_whole,
)
from gradmem_jax.trees import Params


def evaluate_batch(
    model: MemoryModel,
    params: Params,
    batch: Batch,
    num_steps: jax.Array,
    *,
    max_steps: int,
    num_kinds: int = 0,
    mesh: Mesh | None = None,
) -> tuple[Metrics, dict[str, jax.Array]]:
    """Evaluates a batch after a traced number of WRITE steps; compiled once for all of them.

    Args:
        model: the model.
        params: its parameters.
        batch: see `loss_and_metrics`; with `num_kinds`, also context_kinds, int [B, S]; optionally
            query_segments, int [B, R], the segment that holds the answer of each query.
        num_steps: int32 scalar, K.
        max_steps: the largest K to come.
        num_kinds: how many kinds of context tokens there are.
        mesh: see `loss_gradient`.

    Returns:
        Means over the batch: read_loss, exact_match, token_accuracy, write_loss (after the last
        step), write_loss_by_kind [num_kinds] and, with query_segments, exact_match_by_segment [T].
        And what to weight them with over batches: the totals of `batch_totals`, tokens,
        kinds [num_kinds] and segment_queries [T].

    Examples:
        >>> from gradmem_jax.training.evaluation import evaluate_batch
        >>> batch = {"context_ids": context_ids, "query_ids": query_ids, "labels": query_ids}
        >>> means, totals = evaluate_batch(model, params, batch, jnp.int32(1), max_steps=2)
        >>> means["exact_match"].shape
        ()
    """
    return _jit_evaluation(mesh)(
        model, params, dict(batch), num_steps, max_steps=max_steps, num_kinds=num_kinds
    )


@functools.cache
def _jit_evaluation(mesh: Mesh | None) -> Any:
    """The jitted evaluation of a mesh, see `evaluate_batch`."""

    def evaluate(
        model: MemoryModel,
        params: Params,
        batch: Batch,
        num_steps: jax.Array,
        *,
        max_steps: int,
        num_kinds: int,
    ) -> tuple[Metrics, dict[str, jax.Array]]:
        totals = batch_totals(batch) | _token_totals(model, batch, num_kinds)

        def on_device(params: Params, part: Batch, shared: Any) -> tuple[Params, Metrics]:
            num_steps, totals = shared
            evaluate_part = functools.partial(
                _evaluate_part,
                written_whole(model),
                params,
                totals=totals,
                num_steps=num_steps,
                max_steps=max_steps,
            )
            platform = None if mesh is None else mesh.devices.flat[0].platform
            num_tokens = tokens_of_sample(part)
            return {}, sum_over_parts(
                evaluate_part, part, AUTOMATIC, num_tokens, platform, model.num_write_parts
            )

        shared = (num_steps, totals)
        if mesh is None:
            return on_device(params, batch, shared)[1], totals
        return gradient_on_mesh(on_device, mesh, params, batch, shared, {})[1], totals

    static = ("model", "max_steps", "num_kinds")
    if mesh is None:
        return jax.jit(evaluate, static_argnames=static)
    return jax.jit(
        evaluate,
        static_argnames=static,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=mesh_compiler_options(mesh),
    )


def _evaluate_part(
    model: MemoryModel,
    params: Params,
    batch: Batch,
    totals: Mapping[str, jax.Array],
    num_steps: jax.Array,
    max_steps: int,
) -> Metrics:
    """The part of a batch's metrics that some of its samples contribute, see `evaluate_batch`."""
    context_ids = batch["context_ids"]
    memory, _ = write_context(model, params, context_ids, num_steps=num_steps, max_steps=max_steps)
    _, metrics, exact = read_loss_and_metrics(model, params, memory, batch, totals)
    losses = write_token_losses(model, params, memory, context_ids)
    losses = losses * _counted_tokens(model, batch).astype(losses.dtype)
    metrics["write_loss"] = losses.sum() / jnp.maximum(totals["tokens"], 1).astype(losses.dtype)
    if "kinds" in totals:
        kinds = jax.nn.one_hot(batch["context_kinds"], len(totals["kinds"]))
        sums = (losses[..., None] * kinds).sum(axis=range(losses.ndim))
        metrics["write_loss_by_kind"] = sums / jnp.maximum(totals["kinds"], 1)
    if "query_segments" in batch:
        asked = jax.nn.one_hot(batch["query_segments"], context_ids.shape[1])
        matches = (exact[..., None].astype(asked.dtype) * asked).sum(axis=(0, 1))
        metrics["exact_match_by_segment"] = matches / jnp.maximum(totals["segment_queries"], 1)
    return metrics


def _token_totals(model: MemoryModel, batch: Batch, num_kinds: int) -> dict[str, jax.Array]:
    """Counts that `evaluate_batch` returns beside those of `batch_totals`."""
    tokens = _counted_tokens(model, batch)
    totals = {"tokens": tokens.sum()}
    if num_kinds:
        kinds = jax.nn.one_hot(batch["context_kinds"], num_kinds)
        kinds = kinds * tokens[..., None].astype(kinds.dtype)
        totals["kinds"] = kinds.sum(axis=tuple(range(tokens.ndim)))
    if "query_segments" in batch:
        num_segments = batch["context_ids"].shape[1]
        asked = jax.nn.one_hot(batch["query_segments"], num_segments)
        valid = valid_samples(batch)[:, None, None].astype(asked.dtype)
        totals["segment_queries"] = (asked * valid).sum(axis=(0, 1))
    return totals


def _counted_tokens(model: MemoryModel, batch: Batch) -> jax.Array:
    """Whose losses count: those of tokens that have one, in samples that are valid."""
    context_ids = batch["context_ids"]
    return model.scored_tokens(context_ids) & per_query(valid_samples(batch), context_ids)
