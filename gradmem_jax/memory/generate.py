"""Decoding from memory: greedy, or drawn from the model's distribution."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradmem_jax.array_checks import as_array, check_key, check_length, on_device
from gradmem_jax.checks import is_traced, require, require_instance, require_integer, require_number
from gradmem_jax.foreign_text import shown
from gradmem_jax.memory.interface import MemoryModel, MemoryT
from gradmem_jax.parallel.any_mesh import on_any_mesh, vary_like
from gradmem_jax.parallel.compiling import FEWER_COPIES, compiler_options, platform_of
from gradmem_jax.precision import at_precision
from gradmem_jax.trees import Params


def generate(
    model: MemoryModel[MemoryT],
    params: Params,
    memory: MemoryT,
    query_ids: ArrayLike,
    max_new_tokens: int,
    *,
    stop_id: int | Sequence[int] | None = None,
    never: Sequence[int] | np.ndarray = (),
    temperature: ArrayLike = 0.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Continues queries, from memory alone; compiled once for each shape.

    The WRITE is not repeated: the same memory serves any number of calls. What comes back can be
    put behind its query and continued again: `config.pad_id` is never among the tokens, and fills
    only what is behind a stop.

    Args:
        model: the model.
        params: its parameters.
        memory: what `write_memory` returned for B samples.
        query_ids: int [B, Q] or [B, R, Q], padded on the right with `config.pad_id`.
        max_new_tokens: T, how many tokens to add.
        stop_id: after this token, or one of these, a sample is filled with `config.pad_id`;
            decoding ends when all have stopped. `config.pad_id` may be one of them.
        never: ids that are never among the tokens, such as those that the tokenizer has no token
            for: models often have more rows than their tokenizers have tokens.
        temperature: 0 takes the most probable token, as what float32 takes for 0 does; 1 draws from
            the model's distribution. It may be traced.
        top_k: draw from the k most probable tokens, and those as probable as the last of them. It
            may be traced.
        top_p: draw from the fewest tokens that have this probability together, after `top_k`. It
            may be traced.
        key: a JAX random key, needed to draw.

    Returns:
        int32 [B, T] or [B, R, T], the new tokens only.

    Raises:
        ValueError: wrong shapes, ids outside the vocabulary, too many tokens for the model, a
            negative temperature, one above 0 without a key, `top_k` below 1, or `top_p` outside
            (0, 1].

    Examples:
        >>> gradmem_jax.generate(model, params, memory, query_ids, max_new_tokens=3).shape  # [B, T]
        (2, 3)
        >>> drawn = gradmem_jax.generate(
        ...     model, params, memory, query_ids, 3, temperature=1.0, key=jax.random.key(1)
        ... )
        >>> bool((drawn > 0).all())  # never padding
        True
    """
    require_instance("model", model, MemoryModel)
    max_new_tokens = require_integer("max_new_tokens", max_new_tokens, 1)
    c = model.config
    stops = _check_stops(stop_id, c.lm.vocab_size)
    never = _check_never(never, c.lm.vocab_size, c.pad_id)
    draws = is_traced(temperature)
    if not draws:
        temperature = require_number("temperature", temperature)
        require(temperature >= 0, f"temperature={temperature} must not be negative.")
        draws = temperature >= float(jnp.finfo(jnp.float32).tiny)
    require(
        not draws or key is not None,
        f"temperature={temperature} draws tokens: give a key, such as jax.random.key(0).",
    )
    if top_k is not None and not is_traced(top_k):
        top_k = min(require_integer("top_k", top_k, 1), c.lm.vocab_size)
    if top_p is not None and not is_traced(top_p):
        top_p = require_number("top_p", top_p, above=0)
        require(top_p <= 1, f"top_p={top_p} must be in (0, 1], a probability.")
    if key is not None:
        check_key(key)
    ids = model.check_read(params, memory, query_ids)
    length = ids.shape[-1] + max_new_tokens
    positions = model.num_memory_positions(memory)
    check_length("query_ids with max_new_tokens", length, positions, c.lm.max_positions)
    drawing = None
    if draws:
        numbers = (temperature, top_k, top_p)
        known = [np.float32(x) if isinstance(x, int | float) else x for x in numbers]
        drawing = _Drawing(jnp.asarray(key), *on_device(known))
    arrays = (params, memory, ids, *on_device([stops, never]), drawing)
    inside = any(is_traced(x) for x in jax.tree.leaves(arrays))
    decode = _compiled("any" if inside else platform_of((params, memory)))
    return decode(model.reader, max_new_tokens, *arrays)


class _Drawing(NamedTuple):
    """How tokens are drawn; see `generate`."""

    key: jax.Array
    temperature: jax.Array
    top_k: jax.Array | None
    top_p: jax.Array | None

    def choose(self, key: jax.Array, logits: jax.Array) -> jax.Array:
        """Draws a token of each row of logits [..., V]: int [...]."""
        below = logits - logits.max(axis=-1, keepdims=True)  # none overflows, however cold
        temperature = self.temperature.astype(below.dtype)
        scaled = below / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)
        scaled = _keep_most_probable(scaled, self.top_k, self.top_p)
        return jax.random.categorical(key, scaled)


def _check_stops(stop_id: int | Sequence[int] | None, vocab_size: int) -> np.ndarray:
    """Returns the ids to stop at, int32 [n]; or raises ValueError."""
    if stop_id is None:
        return np.zeros(0, np.int32)
    is_several = isinstance(stop_id, list | tuple) or np.ndim(stop_id) == 1
    given: Any = stop_id if is_several else [stop_id]
    stops = [require_integer("stop_id", x, 0) for x in given]
    require(
        len(stops) > 0 and all(stop < vocab_size for stop in stops),
        f"stop_id={shown(stop_id)} must be one or more ids of the vocabulary of {vocab_size}.",
    )
    return np.array(stops, np.int32)


def _check_never(never: Sequence[int] | np.ndarray, vocab_size: int, pad_id: int) -> np.ndarray:
    """Returns the ids that are never generated, int32 [n]; or raises ValueError."""
    ids = np.asarray(as_array("never", never, f"ids of the vocabulary of {vocab_size}"))
    ids = ids if ids.size else np.zeros(0, np.int32)
    fits = ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer)
    require(
        fits and bool(((ids >= 0) & (ids < vocab_size)).all()),
        f"never={shown(never)} must be ids of the vocabulary of {vocab_size}.",
    )
    require(
        len({pad_id, *ids.tolist()}) < vocab_size,  # the padding is no token either
        f"never={shown(never)} leaves no id of the vocabulary of {vocab_size} to generate.",
    )
    return ids.astype(np.int32)


def _keep_most_probable(
    logits: jax.Array, top_k: jax.Array | None, top_p: jax.Array | None
) -> jax.Array:
    """Logits [..., V], -inf where a token is not among the most probable ones."""
    if top_k is None and top_p is None:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    if top_k is not None:
        rank = jnp.arange(logits.shape[-1]).astype(jnp.float32)
        ordered = jnp.where(rank < jnp.maximum(top_k, 1).astype(jnp.float32), ordered, -jnp.inf)
    if top_p is not None:
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        share = jnp.maximum(top_p.astype(before.dtype), jnp.finfo(before.dtype).tiny)
        ordered = jnp.where(before < share, ordered, -jnp.inf)
    least = jnp.where(ordered > -jnp.inf, ordered, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


@functools.cache
def _compiled(platform: str) -> Any:
    """`_generate`, compiled; on CPU so that it does not copy the cache twice a token."""
    options = compiler_options(FEWER_COPIES) if platform == "cpu" else None
    return jax.jit(_generate, static_argnums=(0, 1), compiler_options=options)


def _generate(
    model: MemoryModel,
    max_new_tokens: int,
    params: Params,
    memory: Any,
    query_ids: jax.Array,
    *others: Any,
) -> jax.Array:
    decode = functools.partial(_decode, model, max_new_tokens)
    decode = at_precision(decode, model.config.lm.matmul_precision)
    return on_any_mesh(decode, (query_ids, memory), 0, params, memory, query_ids, *others)


def _decode(
    model: MemoryModel,
    max_new_tokens: int,
    params: Params,
    memory: Any,
    query_ids: jax.Array,
    stops: jax.Array,
    never: jax.Array,
    drawing: _Drawing | None,
) -> jax.Array:
    pad_id = model.config.pad_id
    several = query_ids.ndim == 3
    if several:  # queries first, as the states are
        logits, state = model.read_several(params, memory, query_ids, max_new_tokens)
        logits, query_ids = jnp.moveaxis(logits, 1, 0), jnp.moveaxis(query_ids, 1, 0)
    else:
        logits, state = model.read_logits(params, memory, query_ids, max_new_tokens)
    keys = None
    if drawing is not None:
        keys = jax.random.split(drawing.key, max_new_tokens)
        if several:
            keys = jax.vmap(lambda key: jax.random.split(key, query_ids.shape[0]))(keys)

    def each(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(function) if several else function

    @each
    def last(logits: jax.Array, query_ids: jax.Array) -> jax.Array:
        lengths = model.query_lengths(query_ids)[:, None, None]
        return jnp.take_along_axis(logits, lengths, axis=1)[:, 0]

    @each
    def advance(state: Any, ids: jax.Array) -> tuple[jax.Array, Any]:
        return model.decode_token(params, state, ids)

    def choose(index: jax.Array | int, logits: jax.Array) -> jax.Array:
        """The next tokens; the padding is none of them, unless it is a stop."""
        is_padding = jnp.arange(logits.shape[-1]) == pad_id
        left_out = (is_padding & (stops != pad_id).all()).at[never].set(True)
        logits = jnp.where(left_out, -jnp.inf, logits)
        best = logits.argmax(-1).astype(jnp.int32)
        if drawing is None or keys is None:
            return best
        drawn = each(drawing.choose)(keys[index], logits).astype(jnp.int32)
        return jnp.where(drawing.temperature < jnp.finfo(jnp.float32).tiny, best, drawn)

    def has_stopped(ids: jax.Array) -> jax.Array:
        return jnp.isin(ids, stops)

    def goes_on(carry: Any) -> jax.Array:
        index, done, *_ = carry
        return (index < max_new_tokens) & ~done.all()

    def step(carry: Any) -> Any:
        index, done, tokens, state = carry
        logits, state = advance(state, tokens[index - 1])
        ids = jnp.where(done, pad_id, choose(index, logits))
        return index + 1, done | has_stopped(ids), tokens.at[index].set(ids), state

    ids = choose(0, last(logits, query_ids))
    tokens = jnp.full((max_new_tokens, *ids.shape), pad_id, jnp.int32).at[0].set(ids)
    carry = (1, *vary_like((has_stopped(ids), tokens, state), ids))
    _, _, tokens, _ = jax.lax.while_loop(goes_on, step, carry)
    return tokens.T
