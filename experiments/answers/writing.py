"""Texts into memory: in batches, with what each became."""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers.contexts import Context, encode_context, make_batches, warn_of_unknown
from experiments.answers.open_model import OpenModel
from experiments.program import formatting
from experiments.program.console import log
from gradmem_jax.checks import require
from gradmem_jax.data.task import text_of
from gradmem_jax.foreign_text import one_line
from gradmem_jax.lm.transformer import TransformerConfig
from gradmem_jax.memory.interface import Memory, kv_cache_floats, memory_floats
from gradmem_jax.memory.reconstruction import reconstruct
from gradmem_jax.memory.segments import write_context, write_token_losses
from gradmem_jax.storage.arrays_file import LARGEST_HEADER
from gradmem_jax.storage.memory_file import StoredContext, save_memory
from gradmem_jax.storage.memory_header import context_bytes

_LOSS_BYTES = 12  # in a memory file: a float32, mostly of eight digits, with a point and a comma


class Written(NamedTuple):
    """Contexts in memory.

    Attributes:
        memory: of all contexts, in their order.
        contexts: what is known of each.
        ids: of each context, int32 [S] or, in segments, [T, S].
    """

    memory: Memory
    contexts: list[StoredContext]
    ids: list[np.ndarray]


def write_contexts(
    opened: OpenModel,
    contexts: Sequence[Context],
    *,
    num_write_steps: int | None = None,
    segment_tokens: int | None = None,
    batch_size: int = 16,
) -> Written:
    """Writes contexts into memory, with a progress line for each batch.

    Args:
        opened: the model.
        contexts: the texts.
        num_write_steps: K; the model's own by default.
        segment_tokens: longer contexts are written in segments of so many tokens.
        batch_size: contexts written at once.

    Raises:
        ValueError: a context is empty, too long, or holds padding, or a memory file has no room for
            so many WRITE losses; before anything is written.
    """
    model, params = opened.model, opened.params
    pad_id = model.config.pad_id
    limit = opened.limit
    encode = functools.partial(
        encode_context,
        tokenizer=opened.tokenizer,
        pad_id=pad_id,
        limit=limit,
        segment_tokens=segment_tokens,
    )
    ids = [encode(context) for context in contexts]
    steps = model.config.num_write_steps if num_write_steps is None else num_write_steps
    _check_header(contexts, ids, steps)
    for context in contexts:
        warn_of_unknown(context.name, context.text, opened.tokenizer)

    @jax.jit
    def write(params: Any, ids: jax.Array) -> Any:
        memory, info = write_context(model, params, ids, num_steps=num_write_steps)
        losses = write_token_losses(model, params, memory, ids)
        axes = tuple(range(1, ids.ndim))
        num_tokens = jnp.maximum(model.scored_tokens(ids).sum(axes), 1).astype(losses.dtype)
        return memory, info.losses, losses.sum(axes) / num_tokens

    memories: dict[int, Memory] = {}
    stored: dict[int, StoredContext] = {}
    started = time.monotonic()
    for batch in make_batches(ids, batch_size, pad_id=pad_id, limit=limit):
        memory, losses, final = jax.device_get(write(params, batch.ids))
        losses = losses if losses.ndim == 3 else losses[None]  # [T, K, B]
        for row, i in enumerate(batch.indices):
            one = jax.tree.map(lambda x, row=row: x[row : row + 1], memory)
            memories[i] = model.without_padding(one)
            rows = tuple(tuple(map(float, steps)) for steps in losses[:, :, row])
            count = int((ids[i] != pad_id).sum())
            stored[i] = StoredContext(contexts[i].name, count, rows, float(final[row]))
        seconds = time.monotonic() - started
        left = seconds / len(stored) * (len(contexts) - len(stored))
        log.info(
            "%d/%d contexts | %.2f contexts/s | %s left",
            len(stored),
            len(contexts),
            len(stored) / seconds,
            formatting.minutes(left),
        )
    order = range(len(contexts))
    return Written(_join([memories[i] for i in order]), [stored[i] for i in order], ids)


def _check_header(contexts: Sequence[Context], ids: Sequence[np.ndarray], steps: int) -> None:
    """Refuses contexts that a memory file's header has no room for with their WRITE losses."""
    count = steps * sum(1 if each.ndim == 1 else len(each) for each in ids)
    size = count * _LOSS_BYTES + sum(context_bytes(StoredContext(c.name)) for c in contexts)
    require(
        size <= LARGEST_HEADER,
        f"{len(contexts)} contexts, with a loss for each of {count} WRITE steps, need about {size} "
        f"bytes beside their memories, and a memory file has room for {LARGEST_HEADER}; write them "
        "to several files, or with fewer --num_write_steps.",
    )


class ReadBack(NamedTuple):
    """What was read back of a context from its memory.

    Attributes:
        text: by greedy decoding.
        accuracy: share of right tokens in it.
        token_accuracy: share of tokens that are the likeliest after the true ones.
    """

    text: str
    accuracy: float
    token_accuracy: float


def read_back(opened: OpenModel, written: Written, batch_size: int = 16) -> list[ReadBack]:
    """Reads contexts back from memory.

    Args:
        opened: the model.
        written: what `write_contexts` made. Of a context in segments the last one is read.
        batch_size: contexts read at once.
    """
    config = opened.model.config
    limit = opened.limit
    last = [ids if ids.ndim == 1 else ids[-1] for ids in written.ids]
    found: dict[int, ReadBack] = {}
    for batch in make_batches(last, batch_size, pad_id=config.pad_id, limit=limit):
        copies = [batch.indices[-1]] * (len(batch.ids) - len(batch.indices))
        rows = np.array([*batch.indices, *copies])
        memory = jax.tree.map(lambda x, rows=rows: x[rows], written.memory)
        back = reconstruct(opened.model, opened.params, memory, batch.ids, never=opened.never)
        for row, i in enumerate(batch.indices):
            text = text_of(opened.tokenizer, back.ids[row])
            found[i] = ReadBack(text, float(back.accuracy[row]), float(back.token_accuracy[row]))
    return [found[i] for i in range(len(last))]


def _join(memories: Sequence[Memory]) -> Memory:
    """Several memories as one; what is shorter in some of them (a cache) is filled with zeros."""

    def join(*leaves: np.ndarray) -> np.ndarray:
        shape = [max(lengths) for lengths in zip(*(x.shape for x in leaves), strict=True)]
        missing = [[(0, m - n) for m, n in zip(shape, x.shape, strict=True)] for x in leaves]
        return np.concatenate(list(map(np.pad, leaves, missing)))

    return jax.tree.map(join, *memories)


def save_written(path: str, opened: OpenModel, written: Written) -> None:
    """Writes a memory file that experiments.ask can open by itself."""
    save_memory(
        path,
        written.memory,
        opened.model,
        opened.params,
        contexts=written.contexts,
        notes=opened.notes,
    )


def describe_sizes(opened: OpenModel, memory: Memory, context: StoredContext) -> dict[str, int]:
    """Floats and bytes of one context's memory and, of a Transformer, of its key-value cache."""
    leaves = jax.tree.leaves(memory)
    sizes = {
        "memory_floats": memory_floats(memory),
        "memory_bytes": sum(x.nbytes // len(x) for x in leaves),
    }
    lm = opened.model.config.lm
    if isinstance(lm, TransformerConfig) and context.num_tokens is not None:
        floats = kv_cache_floats(lm, context.num_tokens)
        sizes |= {"cache_floats": floats, "cache_bytes": floats * jnp.dtype(lm.dtype).itemsize}
    return sizes


def describe(context: StoredContext, sizes: Mapping[str, int]) -> str:
    """A line about a context in memory."""
    first = [f"{row[0]:.3f}" for row in context.write_losses[:1] if row]
    parts = [
        f"{one_line(context.name)}: {context.num_tokens} tokens",
        f"WRITE loss {' -> '.join([*first, f'{context.final_loss:.3f}'])}",
        f"memory {sizes['memory_floats']} floats, {sizes['memory_bytes']} bytes",
    ]
    if "cache_bytes" in sizes:
        ratio = sizes["cache_bytes"] / sizes["memory_bytes"]
        parts.append(
            f"KV cache {sizes['cache_floats']} floats, {sizes['cache_bytes']} bytes: "
            f"{ratio:.1f} times the memory"
        )
    return " | ".join(parts)


def report(opened: OpenModel, written: Written) -> str:
    """What became of each context, a line for each."""
    sizes = [describe_sizes(opened, written.memory, context) for context in written.contexts]
    return "\n".join(map(describe, written.contexts, sizes))


def report_read_back(written: Written, found: Sequence[ReadBack]) -> str:
    """What was read back of each context."""
    return "\n".join(
        f"{one_line(context.name)}: {back.token_accuracy:.0%} of its tokens are the likeliest "
        f"after the true ones; decoded from memory alone, {back.accuracy:.0%} are in their "
        f"places:\n  {one_line(back.text, len(back.text))}"
        for context, back in zip(written.contexts, found, strict=True)
    )
