"""Evaluation with the context removed: exact match, WRITE losses and readable answers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gradmem_jax.data import squad_metrics
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.data.task import Task, ids_without_token, text_of
from gradmem_jax.foreign_text import one_line
from gradmem_jax.memory.generate import generate
from gradmem_jax.memory.interface import Memory, MemoryModel
from gradmem_jax.memory.segments import write_context
from gradmem_jax.parallel.sharding import batch_sharding, num_batch_shards, place
from gradmem_jax.training.evaluation import evaluate_batch
from gradmem_jax.trees import Params


def confidence_interval(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate that was measured on `count` independent contexts."""
    centre = rate + z * z / (2 * count)
    spread = z * np.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return float(max(0, (centre - spread) / scale)), float(min(1, (centre + spread) / scale))


def one_query(task: Any) -> Any:
    """The task with one query a context, so that the samples of an evaluation are independent."""
    has_several = getattr(task, "queries_per_context", 1) > 1
    return dataclasses.replace(task, queries_per_context=1) if has_several else task


def evaluate_params(
    model: MemoryModel,
    params: Params,
    task: Task,
    num_write_steps: Sequence[int],
    *,
    num_samples: int,
    split: str = "validation",
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> dict[int, dict[str, Any]]:
    """Evaluates on a split of a task, the context removed after WRITE.

    Args:
        model: the model.
        params: its parameters.
        task: the task.
        num_write_steps: the values of K to evaluate.
        num_samples: number of contexts, at most.
        split: of the task.
        batch_size: contexts in a batch, made a multiple of the parts that `mesh` splits it into.
        mesh: devices, of all processes, that each batch is split over; None takes the first.

    Returns:
        For each K: exact_match and its confidence_interval, token_accuracy, read_loss (nats a
        target token), write_loss (after K steps, nats a token), num_samples, write_loss_of by kind
        of token if the task has kinds, and, if the context comes in segments,
        exact_match_by_segment, the first written first.
    """
    source = task.source(split, num_samples)
    where = None
    if mesh is not None:
        where, num_shards = batch_sharding(mesh), num_batch_shards(mesh)
        batch_size = -(-batch_size // num_shards) * num_shards
    sums: dict[int, list[Any]] = {k: [] for k in num_write_steps}
    for host_batch in make_iterator(source, batch_size, task=task, pad_last=True):
        batch = place(host_batch, where) if where else jax.device_put(host_batch)
        for k in num_write_steps:
            results = evaluate_batch(
                model,
                params,
                batch,
                jnp.int32(k),
                max_steps=max(num_write_steps),
                num_kinds=len(task.kinds),
                mesh=mesh,
            )
            sums[k].append(results)
    return {
        k: _summarize(jax.device_get(results), len(source), task.kinds)
        for k, results in sums.items()
    }


def _summarize(results: list[Any], num_samples: int, kinds: Sequence[str]) -> dict[str, Any]:
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
    by_kind = means.pop("write_loss_by_kind", None)
    by_segment = means.pop("exact_match_by_segment", None)
    summary: dict[str, Any] = {name: float(value) for name, value in means.items()}
    if by_segment is not None:
        summary["exact_match_by_segment"] = by_segment
    summary["confidence_interval"] = confidence_interval(summary["exact_match"], num_samples)
    summary["num_samples"] = num_samples
    if by_kind is not None:
        counts = sum(totals["kinds"] for _, totals in results)
        summary["write_loss_of"] = {
            kind: float(loss) for kind, loss, n in zip(kinds, by_kind, counts, strict=True) if n
        }
    return summary


@functools.partial(jax.jit, static_argnames="model")
def _write(model: MemoryModel, params: Params, context_ids: jax.Array) -> Memory:
    return write_context(model, params, context_ids)[0]


def answer_metrics(
    model: MemoryModel,
    params: Params,
    task: Any,
    *,
    num_samples: int,
    split: str = "test",
    batch_size: int = 64,
) -> dict[str, float]:
    """Scores generated answers as texts against all reference answers, by the rules of SQuAD.

    Args:
        model: the model, its number of WRITE steps as configured.
        params: its parameters.
        task: a task of questions, whose sources have the texts of sample i in `record(i)`.
        num_samples: number of questions, at most.
        split: of the task.
        batch_size: questions in a batch.

    Returns:
        text_exact_match and text_f1, means over the questions.
    """
    source, tokenizer = task.source(split, num_samples), task.tokenizer
    longest = max(int((source[i]["labels"] >= 0).sum()) for i in range(len(source)))
    matches, f1s = np.zeros(len(source)), np.zeros(len(source))
    for batch in make_iterator(source, batch_size, task=task, pad_last=True):
        questions = np.where(batch["labels"] < 0, batch["query_ids"], task.pad_id)
        memory = _write(model, params, batch["context_ids"])
        answers = generate(
            model,
            params,
            memory,
            questions,
            longest,
            stop_id=getattr(tokenizer, "end_id", None),
            never=ids_without_token(tokenizer, model.config.lm.vocab_size),
        )
        for i, ids in zip(batch["index"], np.asarray(answers)[:, 0], strict=True):
            text, references = text_of(tokenizer, ids), source.record(int(i)).answers
            matches[i] = squad_metrics.exact_match(text, references)
            f1s[i] = squad_metrics.f1(text, references)
    return {"text_exact_match": float(matches.mean()), "text_f1": float(f1s.mean())}


def sample_answers(
    model: MemoryModel,
    params: Params,
    task: Task,
    *,
    split: str = "validation",
    count: int = 4,
) -> str:
    """Writes a few fresh contexts, answers queries from memory alone and shows what came back."""
    source, tokenizer = task.source(split, count), task.tokenizer
    batch = next(make_iterator(source, min(count, len(source)), task=task, num_threads=0))
    is_question = (batch["labels"] < 0) & (batch["query_ids"] != task.pad_id)
    questions = np.where(is_question, batch["query_ids"], task.pad_id)
    is_answer = batch["labels"] >= 0
    memory = _write(model, params, batch["context_ids"])
    never = ids_without_token(tokenizer, model.config.lm.vocab_size)
    longest = int(is_answer.sum(axis=-1).max())
    answers = np.asarray(generate(model, params, memory, questions, longest, never=never))

    def text(ids: np.ndarray) -> str:
        decoded = text_of(tokenizer, ids)
        return one_line(decoded, len(decoded))

    lines = []
    for i, context in enumerate(batch["context_ids"]):
        lines += [f"context  {text(segment)}" for segment in np.atleast_2d(context)]
        for asked, answer, truth, told in zip(
            questions[i], answers[i], batch["query_ids"][i], is_answer[i], strict=True
        ):
            got = text(answer[: told.sum()])
            want = text(truth[told])
            verdict = "right" if got == want else f"wrong, it is {want}"
            lines.append(f"  {text(asked)} -> {got}  ({verdict})")
    return "\n".join(lines)


def table(results: dict[int, dict[str, Any]]) -> str:
    """Formats the results of one task, a line for each K."""
    kinds = [kind for kind in next(iter(results.values())).get("write_loss_of", {})][:3]
    losses_of = ", ".join(kinds) or "all tokens"
    lines = [f"  K   exact match   95 % interval   token accuracy   WRITE loss: {losses_of}"]
    for k, row in results.items():
        low, high = row["confidence_interval"]
        values = [row["write_loss_of"][kind] for kind in kinds] or [row["write_loss"]]
        losses = "  ".join(f"{value:.3f}" for value in values)
        lines.append(
            f"{k:3d}   {row['exact_match']:10.1%}   {low:6.1%}-{high:6.1%}   "
            f"{row['token_accuracy']:14.1%}   {losses:>12}"
        )
    return "\n".join(lines)
