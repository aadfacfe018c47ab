"""Decoding from memory: greedy, or drawn from the model's distribution."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.array_checks import check_key, check_length
from gradmem_jax.checks import is_traced, require, require_instance, require_integer, require_number
from gradmem_jax.memory.interface import Memory, MemoryModel
from gradmem_jax.parallel.any_mesh import on_any_mesh, vary_like
from gradmem_jax.parallel.compiling import FEWER_COPIES, compiler_options, platform_of
from gradmem_jax.trees import Params


def generate(
    model: MemoryModel,
    params: Params,
    memory: Memory,
    query_ids: jax.typing.ArrayLike,
    max_new_tokens: int,
    *,
    stop_id: int | None = None,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Continues queries, from memory alone; compiled once for each shape.

    The WRITE is not repeated: the same memory serves any number of calls.

    Args:
        model: the model.
        params: its parameters.
        memory: what `write_memory` returned for B samples.
        query_ids: int [B, Q] or [B, R, Q], padded on the right with `config.pad_id`.
        max_new_tokens: T, how many tokens to add.
        stop_id: after this token a sample is filled with `config.pad_id`; decoding ends when all
            have stopped.
        temperature: 0 takes the most probable token, as what float32 takes for 0 does; 1 draws from
            the model's distribution.
        key: a JAX random key, needed to draw.

    Returns:
        int32 [B, T] or [B, R, T], the new tokens only.

    Raises:
        ValueError: wrong shapes, ids outside the vocabulary, too many tokens for the model, a
            negative temperature, or one without a key.
    """
    require_instance("model", model, MemoryModel)
    max_new_tokens = require_integer("max_new_tokens", max_new_tokens, 1)
    c = model.config
    stop = -1 if stop_id is None else require_integer("stop_id", stop_id, 0)
    require(
        stop < c.lm.vocab_size,
        f"stop_id={stop_id} is outside the vocabulary of {c.lm.vocab_size} ids.",
    )
    temperature = require_number("temperature", temperature)
    require(temperature >= 0, f"temperature={temperature} must not be negative.")
    require(
        temperature == 0 or key is not None,
        f"temperature={temperature} draws tokens: give a key, such as jax.random.key(0).",
    )
    if key is not None:
        check_key(key)
    ids = model.check_read(params, memory, query_ids)
    length = ids.shape[-1] + max_new_tokens
    positions = model.num_memory_positions(memory)
    check_length("query_ids with max_new_tokens", length, positions, c.lm.max_positions)
    unused = jax.random.key(0)
    arrays = (params, memory, ids, unused if key is None else key, temperature)
    inside = any(is_traced(x) for x in jax.tree.leaves((arrays, unused)))
    decode = _compiled("any" if inside else platform_of(arrays))
    draws = temperature >= float(jnp.finfo(jnp.float32).tiny)
    return decode(model, max_new_tokens, stop, draws, *arrays)


@functools.cache
def _compiled(platform: str) -> Any:
    """`_generate`, compiled; on CPU so that it does not copy the cache twice a token."""
    options = compiler_options(FEWER_COPIES) if platform == "cpu" else None
    return jax.jit(_generate, static_argnums=(0, 1, 2, 3), compiler_options=options)


def _generate(
    model: MemoryModel,
    max_new_tokens: int,
    stop_id: int,
    draws: bool,
    params: Params,
    memory: Memory,
    query_ids: jax.Array,
    key: jax.Array,
    temperature: jax.typing.ArrayLike,
) -> jax.Array:
    decode = functools.partial(_decode, model, max_new_tokens, stop_id, draws)
    arrays = (params, memory, query_ids, key, temperature)
    return on_any_mesh(decode, (query_ids, memory), 0, *arrays)


def _decode(
    model: MemoryModel,
    max_new_tokens: int,
    stop_id: int,
    draws: bool,
    params: Params,
    memory: Memory,
    query_ids: jax.Array,
    key: jax.Array,
    temperature: jax.typing.ArrayLike,
) -> jax.Array:
    pad_id = model.config.pad_id
    keys = jax.random.split(key, max_new_tokens)
    several = query_ids.ndim == 3
    if several:  # queries first, as the states are
        logits, state = model.read_several(params, memory, query_ids, max_new_tokens)
        logits, query_ids = jnp.moveaxis(logits, 1, 0), jnp.moveaxis(query_ids, 1, 0)
        keys = jax.vmap(lambda key: jax.random.split(key, len(query_ids)))(keys)
    else:
        logits, state = model.read_logits(params, memory, query_ids, max_new_tokens)

    def each(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(function) if several else function

    @each
    def last(logits: jax.Array, query_ids: jax.Array) -> jax.Array:
        lengths = model.query_lengths(query_ids)[:, None, None]
        return jnp.take_along_axis(logits, lengths, axis=1)[:, 0]

    @each
    def advance(state: Any, ids: jax.Array) -> tuple[jax.Array, Any]:
        return model.decode_token(params, state, ids)

    @each
    def choose(key: jax.Array, logits: jax.Array) -> jax.Array:
        if not draws:
            return logits.argmax(-1).astype(jnp.int32)
        below = logits - logits.max(axis=-1, keepdims=True)  # none overflows, however cold
        return jax.random.categorical(key, below / temperature).astype(jnp.int32)

    def goes_on(carry: Any) -> jax.Array:
        index, done, *_ = carry
        return (index < max_new_tokens) & ~done.all()

    def step(carry: Any) -> Any:
        index, done, tokens, state = carry
        logits, state = advance(state, tokens[index - 1])
        ids = jnp.where(done, pad_id, choose(keys[index], logits))
        return index + 1, done | (ids == stop_id), tokens.at[index].set(ids), state

    ids = choose(keys[0], last(logits, query_ids))
    tokens = jnp.full((max_new_tokens, *ids.shape), pad_id, jnp.int32).at[0].set(ids)
    carry = (1, *vary_like((ids == stop_id, tokens, state), ids))
    _, _, tokens, _ = jax.lax.while_loop(goes_on, step, carry)
    return tokens.T
