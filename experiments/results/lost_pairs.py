"""Counts of the pairs that a memory of KV retrieval loses, by their place and their keys."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.data.kv_retrieval import KVRetrievalConfig, KVRetrievalSource, TokenKind
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.trees import Params

_NUM_PARTS = 8  # of a context, where it has so many pairs
_MOST_ALIKE = 3  # so many other keys, or more
_BATCH_SIZE = 32


class _Asked(NamedTuple):
    """Pairs that were asked for, each array [B, R]: whether the answer was right, and the rest."""

    right: np.ndarray
    place: np.ndarray  # in the context, from 0
    num_alike: np.ndarray  # other keys that have a symbol in common in the same place
    mixed_up: np.ndarray  # the first wrong symbol is that of the value of such a key


def count_lost_pairs(
    model: MemoryModel,
    params: Params,
    source: KVRetrievalSource,
    num_write_steps: Sequence[int],
) -> dict[int, dict[str, Any]]:
    """Asks for every pair of the contexts of a source.

    Args:
        model: the model.
        params: its parameters.
        source: its contexts come in one piece, and all of their pairs are asked for.
        num_write_steps: the values of K.

    Returns:
        For each K: exact_match of all pairs; by_place, a row for each eighth of the context, from
        1; by_keys_alike, a row by how many other keys of the context have a symbol in common in the
        same place, the last one for three or more; num_lost; and mixed_up, the share of the lost
        pairs whose first wrong symbol is that of the value of such a key. A row has exact_match and
        num_pairs.
    """
    task = source.config
    asked: dict[int, list[_Asked]] = {k: [] for k in num_write_steps}
    for batch in make_iterator(source, _BATCH_SIZE, task=task, pad_last=True):
        for k in num_write_steps:
            tokens = _likeliest_tokens(
                model,
                params,
                jnp.asarray(batch["context_ids"]),
                jnp.asarray(batch["query_ids"]),
                jnp.int32(k),
                max_steps=max(num_write_steps),
            )
            asked[k].append(_judge(task, batch, np.asarray(tokens)))
    return {
        k: _summary(task.num_pairs, _Asked(*map(np.concatenate, zip(*parts, strict=True))))
        for k, parts in asked.items()
    }


def table(rows: Mapping[int, Mapping[str, Any]]) -> str:
    """Formats the counts, a line for each K and kind of row."""
    lines = []
    for k, row in rows.items():
        lines.append(f"K = {k}: {row['exact_match']:.2%} of the pairs are right")
        for name, title in (("by_place", "by place"), ("by_keys_alike", "by keys alike")):
            rates = [f"{group}: {part['exact_match']:.2%}" for group, part in row[name].items()]
            lines.append(f"  {title:>13}  {'  '.join(rates)}")
        if row["num_lost"]:
            lines.append(f"  {row['mixed_up']:.0%} of {row['num_lost']} lost ones are mixed up")
    return "\n".join(lines)


@functools.partial(jax.jit, static_argnames=("model", "max_steps"))
def _likeliest_tokens(
    model: MemoryModel,
    params: Params,
    context_ids: jax.Array,
    query_ids: jax.Array,
    num_steps: jax.Array,
    *,
    max_steps: int,
) -> jax.Array:
    """What READ takes for each token of the queries, int [B, R, Q]."""
    memory, _ = model.write_memory(params, context_ids, num_steps=num_steps, max_steps=max_steps)
    return model.read_memory(params, memory, query_ids)[..., :-1, :].argmax(-1)


def _judge(task: KVRetrievalConfig, batch: Mapping[str, Any], tokens: np.ndarray) -> _Asked:
    """Compares likeliest tokens [B, R, Q] with the pairs of their contexts."""
    batch = {name: np.asarray(x) for name, x in batch.items()}
    kinds, shape = batch["context_kinds"], (len(tokens), task.num_pairs, -1)
    keys = batch["context_ids"][kinds == TokenKind.KEY].reshape(shape)
    values = batch["context_ids"][kinds == TokenKind.VALUE].reshape(shape)
    start = int(batch["value_mask"][0, 0].argmax())
    asked_keys = batch["query_ids"][..., start - 1 - task.key_length : start - 1]
    answers = tokens[..., start : start + task.value_length]
    same = keys[:, None] == asked_keys[:, :, None]  # [B, R, N, key_length]
    place = same.all(-1).argmax(-1)
    alike = same.any(-1) & ~same.all(-1)  # [B, R, N]
    is_right = answers == np.take_along_axis(values, place[..., None], axis=1)
    first_wrong = is_right.argmin(-1)[..., None]  # 0 where all are right
    said = np.take_along_axis(answers, first_wrong, axis=-1)  # [B, R, 1]
    theirs = np.take_along_axis(values[:, None], first_wrong[..., None], axis=-1)[..., 0]
    right = is_right.all(-1)
    mixed_up = ~right & (alike & (theirs == said)).any(-1)
    real = batch["valid"]
    return _Asked(*(x[real] for x in (right, place, alike.sum(-1), mixed_up)))


def _summary(num_pairs: int, asked: _Asked) -> dict[str, Any]:
    num_parts = min(_NUM_PARTS, num_pairs)
    part = asked.place * num_parts // num_pairs
    alike = np.minimum(asked.num_alike, _MOST_ALIKE)
    num_lost = int((~asked.right).sum())

    def rows(groups: np.ndarray) -> dict[int, dict[str, Any]]:
        return {
            int(group): {
                "exact_match": float(asked.right[groups == group].mean()),
                "num_pairs": int((groups == group).sum()),
            }
            for group in np.unique(groups)
        }

    return {
        "exact_match": float(asked.right.mean()),
        "by_place": rows(part + 1),
        "by_keys_alike": rows(alike),
        "num_lost": num_lost,
        "mixed_up": float(asked.mixed_up.sum() / max(num_lost, 1)),
    }
