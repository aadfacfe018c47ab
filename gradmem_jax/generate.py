"""Greedy decoding from memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.config import require, require_integer
from gradmem_jax.memory.interface import Memory, MemoryModel, Params
from gradmem_jax.validation import check_length


def generate(
    model: MemoryModel,
    params: Params,
    memory: Memory,
    query_ids: jax.typing.ArrayLike,
    max_new_tokens: int,
    *,
    stop_id: int | None = None,
) -> jax.Array:
    """Continues queries greedily, from memory alone; compiled once for each shape.

    The WRITE is not repeated: the same memory serves any number of calls.

    Args:
        model: the model.
        params: its parameters.
        memory: what `write_memory` returned for B samples.
        query_ids: int [B, Q] or [B, R, Q], padded on the right with `config.pad_id`.
        max_new_tokens: T, how many tokens to add.
        stop_id: after this token a sample is filled with `config.pad_id`.

    Returns:
        int32 [B, T] or [B, R, T], the new tokens only.

    Raises:
        ValueError: wrong shapes, ids outside the vocabulary, or too many tokens for the model.
    """
    require_integer("max_new_tokens", max_new_tokens, 1)
    c = model.config
    require(
        stop_id is None or 0 <= stop_id < c.lm.vocab_size,
        f"stop_id={stop_id} is outside the vocabulary of {c.lm.vocab_size} ids.",
    )
    ids = model.check_read(params, memory, query_ids)
    length = ids.shape[-1] + max_new_tokens
    positions = model.num_memory_positions(memory)
    check_length("query_ids with max_new_tokens", length, positions, c.lm.max_positions)
    stop = -1 if stop_id is None else stop_id
    decode = functools.partial(_generate, model, max_new_tokens, stop)
    return decode(params, memory, ids)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    model: MemoryModel,
    max_new_tokens: int,
    stop_id: int,
    params: Params,
    memory: Memory,
    query_ids: jax.Array,
) -> jax.Array:
    c = model.config

    def step(carry: Any, _: None) -> Any:
        ids, done, state = carry
        logits, state = model.decode_token(params, state, ids)
        return pick(logits, done | (ids == stop_id), state)

    def pick(logits: jax.Array, done: jax.Array, state: Any) -> Any:
        ids = jnp.where(done, c.pad_id, logits.argmax(-1).astype(jnp.int32))
        return (ids, done, state), ids

    def decode(query_ids: jax.Array) -> jax.Array:
        logits, state = model.read_logits(params, memory, query_ids, room=max_new_tokens)
        last = model.query_lengths(query_ids)[:, None, None]
        logits = jnp.take_along_axis(logits, last, axis=1)[:, 0]
        carry, first = pick(logits, jnp.zeros(len(query_ids), bool), state)
        _, others = jax.lax.scan(step, carry, None, length=max_new_tokens - 1)
        return jnp.concatenate([first[None], others]).T

    return decode(query_ids) if query_ids.ndim == 2 else jax.vmap(decode, 1, 1)(query_ids)
