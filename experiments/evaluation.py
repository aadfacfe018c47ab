"""Evaluation with the context removed: exact match, WRITE losses and readable answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.data import kv_retrieval
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.data.tokenizer import kv_tokenizer
from gradmem_jax.generate import generate
from gradmem_jax.memory.interface import MemoryModel, Params
from gradmem_jax.memory.segments import write_context
from gradmem_jax.training import evaluate_batch

KINDS = [kind.name.lower() for kind in kv_retrieval.TokenKind]


def confidence_interval(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate that was measured on `count` independent contexts."""
    centre = rate + z * z / (2 * count)
    spread = z * np.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return float(max(0, (centre - spread) / scale)), float(min(1, (centre + spread) / scale))


def evaluate_params(
    model: MemoryModel,
    params: Params,
    data: kv_retrieval.KVRetrievalConfig,
    num_write_steps: Sequence[int],
    *,
    num_samples: int,
    batch_size: int = 64,
    batch_sharding: jax.sharding.Sharding | None = None,
) -> dict[int, dict[str, Any]]:
    """Evaluates on the validation stream of a task, the context removed after WRITE.

    Args:
        model: the model.
        params: its parameters.
        data: the task; split and number of samples are replaced.
        num_write_steps: the values of K to evaluate.
        num_samples: number of contexts.
        batch_size: contexts in a batch.
        batch_sharding: how a batch lies on devices; None puts it on the first one.

    Returns:
        For each K: exact_match and its confidence_interval, token_accuracy, read_loss, write_loss
        (after K steps, nats a token), write_loss_of, by kind of token, and, if the context comes in
        segments, exact_match_by_segment, the first written first.
    """
    data = dataclasses.replace(data, split="validation", num_samples=num_samples)
    source = kv_retrieval.KVRetrievalSource(data)
    sums: dict[int, list[Any]] = {k: [] for k in num_write_steps}
    for host_batch in make_iterator(source, batch_size, pad_last=True):
        batch = jax.device_put(host_batch, batch_sharding)
        for k in num_write_steps:
            results = evaluate_batch(
                model,
                params,
                batch,
                jnp.int32(k),
                max_steps=max(num_write_steps),
                num_kinds=len(KINDS),
            )
            sums[k].append(results)
    return {k: _summarize(jax.device_get(results), num_samples) for k, results in sums.items()}


def _summarize(results: list[Any], num_samples: int) -> dict[str, Any]:
    weights = {
        "read_loss": "targets",
        "exact_match": "queries",
        "token_accuracy": "values",
        "write_loss": "tokens",
        "write_loss_by_kind": "kinds",
        "exact_match_by_segment": "segment_queries",
    }
    means = {}
    for name, weight in weights.items():
        if name not in results[0][0]:
            continue
        total = sum(totals[weight] for _, totals in results)
        weighted = sum(metrics[name] * totals[weight] for metrics, totals in results)
        means[name] = weighted / np.maximum(total, 1)
    counts = sum(totals["kinds"] for _, totals in results)
    by_kind = means.pop("write_loss_by_kind")
    by_segment = means.pop("exact_match_by_segment", None)
    summary: dict[str, Any] = {name: float(value) for name, value in means.items()}
    if by_segment is not None:
        summary["exact_match_by_segment"] = by_segment
    summary["confidence_interval"] = confidence_interval(summary["exact_match"], num_samples)
    summary["write_loss_of"] = {
        kind: float(loss) for kind, loss, n in zip(KINDS, by_kind, counts, strict=True) if n
    }
    return summary


def sample_answers(
    model: MemoryModel, params: Params, data: kv_retrieval.KVRetrievalConfig, count: int = 4
) -> str:
    """Writes a few fresh contexts, answers queries from memory alone and shows what came back."""
    data = dataclasses.replace(data, split="validation", num_samples=count)
    source, tokenizer = kv_retrieval.KVRetrievalSource(data), kv_tokenizer(data.alphabet_size)
    batch = {
        name: np.stack([source[i][name] for i in range(count)])
        for name in ("context_ids", "query_ids", "labels")
    }
    is_question = batch["labels"] < 0
    questions = np.where(is_question, batch["query_ids"], model.config.pad_id)
    answer_length = int((~is_question[0, 0]).sum())
    write = jax.jit(lambda params, ids: write_context(model, params, ids)[0])
    memory = write(params, batch["context_ids"])
    answers = np.asarray(generate(model, params, memory, questions, answer_length))
    lines = []
    for i in range(count):
        segments = np.atleast_2d(batch["context_ids"][i])
        lines += [f"context  {tokenizer.decode(segment)}" for segment in segments]
        for question, answer, truth, asked in zip(
            questions[i], answers[i], batch["query_ids"][i], is_question[i], strict=True
        ):
            got, want = tokenizer.decode(answer), tokenizer.decode(truth[~asked])
            verdict = "right" if got == want else f"wrong, it is {want}"
            lines.append(f"  {tokenizer.decode(question[asked])} -> {got}  ({verdict})")
    return "\n".join(lines)


def table(results: dict[int, dict[str, Any]]) -> str:
    """Formats the results of one task, a line for each K."""
    lines = ["  K   exact match   95 % interval   WRITE loss: " + ", ".join(KINDS[1:4])]
    for k, row in results.items():
        low, high = row["confidence_interval"]
        losses = "  ".join(f"{row['write_loss_of'].get(kind, 0):.3f}" for kind in KINDS[1:4])
        lines.append(f"{k:3d}   {row['exact_match']:10.1%}   {low:6.1%}-{high:6.1%}   {losses:>12}")
    return "\n".join(lines)
