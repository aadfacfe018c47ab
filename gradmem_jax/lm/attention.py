"""Causal attention and the key-value cache."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradmem_jax.checks import is_symbolic, require
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.lm import blockwise
from gradmem_jax.lm.fused import attention as fused
from gradmem_jax.lm.products import dot_general


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Layers only read it: what they return are keys and values of the new tokens, which
    `append_to_cache` puts behind all at once.

    Attributes:
        keys: [L, B, Hkv, T, Dh], a capacity of T tokens a sample.
        values: [L, B, Hkv, T, Dh].
        length: int32 [B], how many of the T slots hold tokens of each sample.

    Examples:
        >>> empty = jnp.zeros((1, 2, 2, 8, 4))  # [L, B, Hkv, T, Dh]
        >>> cache = lm.KVCache(keys=empty, values=empty, length=jnp.array([3, 5]))
        >>> cache.keys.shape[3]  # tokens that it has room for
        8
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array


class PartialAttention(NamedTuple):
    """Attention of queries to some of the keys; `merge_partial` adds that to others.

    Attributes:
        query: [B, S, H, Dh], rotated by their positions.
        mean: [B, S, H, Dh], weighted mean of the values, float32 at least.
        log_sum_exp: [B, S, H], logarithm of the sum of exponentiated scores, float32 at
            least.

    Examples:
        >>> query = jnp.ones((1, 3, 2, 4))  # [B, S, H, Dh]
        >>> found = lm.attend(query, query, query)
        >>> found.mean.shape, found.log_sum_exp.shape
        ((1, 3, 2, 4), (1, 3, 2))
    """

    query: jax.Array
    mean: jax.Array
    log_sum_exp: jax.Array


class ReturnPartial(NamedTuple):
    """Asks a layer for the `PartialAttention` of its tokens to themselves."""


PositionFn = Callable[[jax.Array, jax.Array], jax.Array]
"""Of positions of queries and keys: whether one sees the other, or what is added to its score.

Examples:
    >>> def window(query: jax.Array, key: jax.Array) -> jax.Array:
    ...     return query - key < 8
    >>> mask: lm.PositionFn = window
"""


class ByPosition(NamedTuple):
    """What the positions of a query and a key say of their attention.

    Both functions take the positions of queries, int [B or 1, 1, S, 1], and of keys, int
    [B or 1, 1, 1, T], and return what is broadcastable to [B, H, S, T]. Memory and control tokens
    have positions too: the first ones. A cached key in slot i stands at position i.

    Attributes:
        positions: int [S] or [B, S], of the new tokens.
        mask: true where a query sees a key. It only takes keys away: no query sees a key behind it.
            A query that sees no key gets zeros.
        bias: what is added to the scores, which are scaled by the root of the head's width.

    Examples:
        >>> def window(query: jax.Array, key: jax.Array) -> jax.Array:
        ...     return query - key < 2
        >>> x = jnp.ones((1, 3, 2, 4))  # [B, S, H, Dh]
        >>> by_position = lm.ByPosition(jnp.arange(3), mask=window)
        >>> lm.attend(x, x, x, by_position=by_position).mean.shape
        (1, 3, 2, 4)
    """

    positions: jax.Array
    mask: PositionFn | None = None
    bias: PositionFn | None = None


CachedKV = tuple[jax.Array, jax.Array]  # keys, values [B, Hkv, T, Dh]
AttentionState = CachedKV | PartialAttention | ReturnPartial | None
"""What a layer gets of earlier tokens, and returns; see `self_attention`.

Examples:
    >>> def number_of_cached_tokens(state: lm.AttentionState) -> int:
    ...     return state[0].shape[2] if isinstance(state, tuple) else 0
    >>> number_of_cached_tokens(None)
    0
"""


class _Source(NamedTuple):
    """Keys and values [B, Hkv, T, Dh]; mask and bias, broadcastable to [B, Hkv, G, S, T]."""

    key: jax.Array
    value: jax.Array
    mask: jax.Array | None = None
    bias: jax.Array | None = None


_SCORES = ((4,), (3,)), ((0, 1), (0, 1))  # query [B, Hkv, G, S, Dh], key [B, Hkv, T, Dh]
_MIXTURE = ((4,), (2,)), ((0, 1), (0, 1))  # weights [B, Hkv, G, S, T], value [B, Hkv, T, Dh]
MIN_BLOCK = 64  # queries of a causal block: smaller ones skip more keys, but cost more calls
MAX_BLOCKS = 8
LONGEST_SAVED = 1024  # beyond it backward passes compute scores again, not keep their weights
LARGEST_SAVED = 2**28  # bytes of weights, beyond which they do so too
LARGEST_ROWS = 2**25  # bytes of scores that are there at once then
FEWEST_ROWS = 16  # queries of a sample that go together
SMALLEST_BLOCK = 64  # queries, and keys, of `blockwise.causal_attention`


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    cached: CachedKV | None = None,
    cache_mask: jax.Array | None = None,
    by_position: ByPosition | None = None,
    method: str = "xla",
    softcap: float | None = None,
) -> PartialAttention:
    """Softmax attention that can be differentiated any number of times, in any dtype.

    `jax.nn.dot_product_attention` rounds to float32 even what is float64, which would hide errors
    from the tests by central differences.

    Args:
        query: [B, S, H, Dh].
        key: [B, S, Hkv, Dh], Hkv divides H.
        value: [B, S, Hkv, Dh].
        mask: bool, broadcastable to [B, 1, S, S], true where a query sees a key. None is causal:
            queries go in blocks that skip the keys behind them.
        cached: keys and values [B, Hkv, T, Dh] of earlier tokens.
        cache_mask: bool [B, 1, S, E], true where a query sees one of the first E cached keys.
        by_position: keys that positions hide beside these masks, and what they add to scores.
        method: see `TransformerConfig.attention`.
        softcap: c of scores that become `c * tanh(score / c)` before masks and biases.

    Returns:
        The attention to these keys; its `mean` is the result if there are no others.

    Raises:
        ValueError: a mask that is not bool, or a mask or bias of a wrong shape.

    Examples:
        >>> query = jax.random.normal(jax.random.key(0), (1, 3, 4, 8))  # [B, S, H, Dh]
        >>> key = value = query[:, :, :2]  # [B, S, Hkv, Dh]
        >>> lm.attend(query, key, value).mean.shape  # causal, without a mask
        (1, 3, 4, 8)
    """
    batch_size, length, num_heads, _ = query.shape
    grouped = _group_heads(query, key.shape[2])
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    for name, given in (("mask", mask), ("cache_mask", cache_mask)):
        if given is not None:
            require_bool(name, given)
    if mask is not None:  # a row for each query: what positions hide differs between them
        mask = jnp.broadcast_to(mask, jnp.broadcast_shapes(mask.shape, (length, 1)))

    def source(
        keys: jax.Array, values: jax.Array, mask: jax.Array, start: Any, slots: jax.Array | None
    ) -> _Source:
        """Keys for the queries from `start` on; those of a cache stand at the positions `slots`."""
        if by_position is None:
            return _Source(keys, values, mask)
        num_queries, count = mask.shape[-2], keys.shape[2]
        positions = jnp.atleast_2d(by_position.positions)
        key_positions = positions[:, :count] if slots is None else slots
        query_positions = _slice(positions, start, num_queries, 1)
        places = (query_positions[:, None, :, None], key_positions[:, None, None, :])
        shape = (batch_size, num_heads, num_queries, count)
        shown, bias = (
            _evaluate(name, function, places, shape, keys.shape[1])
            for name, function in (("mask", by_position.mask), ("bias", by_position.bias))
        )
        if shown is not None:
            mask = jnp.expand_dims(mask, tuple(range(shown.ndim - mask.ndim))) & shown
        return _Source(keys, values, mask, bias)

    def sources(start: Any, end: int, mask: jax.Array) -> list[_Source]:
        """What the queries from `start` on see: cached keys, and new ones up to `end`."""
        new = source(key[:, :, :end], value[:, :, :end], mask, start, None)
        if cached is None or cache_mask is None or not cache_mask.shape[-1]:
            return [new]
        count = cache_mask.shape[-1]
        earlier_key, earlier_value = (x[:, :, :count] for x in cached)
        seen = _slice(cache_mask, start, mask.shape[-2], 2)[:, :, None]
        return [source(earlier_key, earlier_value, seen, start, jnp.arange(count)[None]), new]

    parts: list[tuple[jax.Array, jax.Array]] = []
    if mask is not None:
        parts = [_attend_block(grouped, sources(0, length, mask[..., None, :, :]), True, softcap)]
    else:
        plain = by_position is None and softcap is None
        attend_block = functools.partial(
            _attend_block, may_see_nothing=by_position is not None, softcap=softcap
        )
        size = query_rows(batch_size, num_heads, length)
        has_cache = cache_mask is not None and cache_mask.shape[-1] > 0
        is_open = is_symbolic(batch_size) or is_symbolic(length) or not length
        in_blocks = size is not None if method == "auto" else method == "pallas" and not is_open
        if in_blocks and plain and not has_cache:
            scaled = grouped * query.shape[-1] ** -0.5
            block = block_size(batch_size, num_heads, length)
            compute = fused.causal_attention if method == "pallas" else blockwise.causal_attention
            return _partial_attention(query, [compute(scaled, key, value, block)])

        def rows(queries: jax.Array, start: Any, end: int) -> tuple[jax.Array, jax.Array]:
            """Causal attention of neighbouring queries, the first one at `start`."""
            places = start + jnp.arange(queries.shape[3])
            causal = jnp.arange(end)[None] <= places[:, None]
            return attend_block(queries, sources(start, end, causal))

        for start, end in causal_blocks(length):
            queries = grouped[..., start:end, :]
            if size is None:
                parts.append(rows(queries, start, end))
            else:
                parts += _row_by_row(functools.partial(rows, end=end), queries, start, size)
    return _partial_attention(query, parts)


def require_bool(name: str, mask: jax.Array) -> None:
    """Raises ValueError unless a mask of attention is bool."""
    require(
        mask.dtype == bool,
        f"{name} is {mask.dtype}; it must be bool, true where a query sees a key. Give what is "
        "added to scores as a bias.",
    )


def _evaluate(
    name: str,
    function: PositionFn | None,
    places: tuple[jax.Array, jax.Array],
    shape: tuple[int, ...],
    kv_heads: int,
) -> jax.Array | None:
    """A mask or bias of queries and keys at `places`, as `_Source` has it; `shape` [B, H, S, T]."""
    if function is None:
        return None
    values = jnp.asarray(function(*places))
    if name == "mask":
        require_bool(name, values)
    require(
        name == "mask" or jnp.issubdtype(values.dtype, jnp.number),
        f"{name} is {values.dtype}; it must be numbers, which are added to scores. Give what hides "
        "keys as a mask.",
    )
    sizes = (1,) * (4 - values.ndim) + values.shape
    require(
        len(sizes) == 4 and all(size in (1, full) for size, full in zip(sizes, shape, strict=True)),
        f"{name} has shape {values.shape}; it must be broadcastable to [B, H, S, T], here {shape}.",
    )
    batch_size, num_heads, *rest = sizes
    groups = (1, 1) if num_heads == 1 else (kv_heads, num_heads // kv_heads)
    return values.reshape(batch_size, *groups, *rest)


def attend_all(query: jax.Array, key: jax.Array, value: jax.Array) -> PartialAttention:
    """Attention of every query [B, S, H, Dh] to every key [B, T, Hkv, Dh], see `attend`."""
    source = _Source(jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))
    return _partial_attention(query, [_attend_block(_group_heads(query, key.shape[2]), [source])])


def merge_partial(first: PartialAttention, second: PartialAttention) -> jax.Array:
    """Attention of the same queries to the keys of both: [B, S, H, Dh], float32 at least."""
    share = jax.nn.sigmoid(first.log_sum_exp - second.log_sum_exp)[..., None]
    return second.mean + share * (first.mean - second.mean)


def _group_heads(query: jax.Array, kv_heads: int) -> jax.Array:
    """[B, S, H, Dh] to [B, Hkv, G, S, Dh]: queries that share keys stand together."""
    grouped = query.reshape(*query.shape[:2], kv_heads, -1, query.shape[-1])
    return jnp.moveaxis(grouped, 1, 3)


def _partial_attention(
    query: jax.Array, blocks: list[tuple[jax.Array, jax.Array]]
) -> PartialAttention:
    """Puts the blocks of `_attend_block` together."""
    mean, log_sum_exp = (
        jnp.moveaxis(jnp.concatenate(parts, axis=3), 3, 1) for parts in zip(*blocks, strict=True)
    )
    return PartialAttention(query, mean.reshape(query.shape), log_sum_exp.reshape(query.shape[:-1]))


def query_rows(batch_size: int, num_heads: int, length: int) -> int | None:
    """How many queries go together through causal attention; None: whole blocks, kept.

    Of long contexts, or many, the scores of all queries are never there at once: not in a forward
    pass, and not where that is differentiated, once or twice.
    """
    if is_symbolic(batch_size) or is_symbolic(length):
        return None
    row = batch_size * num_heads * length * 4
    if length <= LONGEST_SAVED and row * length <= LARGEST_SAVED:
        return None
    return max(LARGEST_ROWS // row // FEWEST_ROWS * FEWEST_ROWS, FEWEST_ROWS)


def block_size(batch_size: int, num_heads: int, length: int) -> int:
    """How many queries, and as many keys, make a block of `blockwise.causal_attention`.

    Blocks on the diagonal are half hidden, so there are to be some `MAX_BLOCKS` along a side.
    """
    size = SMALLEST_BLOCK
    while (
        2 * size * MAX_BLOCKS <= length
        and batch_size * num_heads * (2 * size) ** 2 * 4 <= LARGEST_ROWS
    ):
        size *= 2
    return size


def _row_by_row(
    attend_rows: Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]],
    queries: jax.Array,
    start: int,
    size: int,
) -> list[tuple[jax.Array, jax.Array]]:
    """Attention of queries [B, Hkv, G, S, Dh], `size` of them after the others."""
    attend_rows = jax.checkpoint(attend_rows)
    count = queries.shape[3] // size
    parts: list[tuple[jax.Array, jax.Array]] = []
    if count > 1:
        whole = queries[..., : count * size, :]
        split = whole.reshape(*whole.shape[:3], count, size, whole.shape[-1])
        starts = start + size * jnp.arange(count)
        mean, log_sum_exp = jax.lax.map(
            lambda part: attend_rows(*part), (jnp.moveaxis(split, 3, 0), starts)
        )
        parts = [(_joined(mean), _joined(log_sum_exp))]
    done = count * size if count > 1 else 0
    if done < queries.shape[3]:
        parts.append(attend_rows(queries[..., done:, :], start + done))
    return parts


def _joined(parts: jax.Array) -> jax.Array:
    """Rows of queries [n, B, Hkv, G, s, ...] as [B, Hkv, G, n * s, ...]."""
    first = jnp.moveaxis(parts, 0, 3)
    return first.reshape(*first.shape[:3], -1, first.shape[-1])


def _slice(x: jax.Array, start: Any, count: int, axis: int) -> jax.Array:
    """`count` entries of an axis from `start` on, which may be traced."""
    return jax.lax.dynamic_slice_in_dim(x, start, count, axis)


def causal_blocks(length: int) -> list[tuple[int, int]]:
    """First and last + 1 query of each block of causal attention; it sees keys up to its last.

    A length that `jax.export` leaves open is one block.
    """
    if is_symbolic(length):
        return [(0, length)]
    size = max(MIN_BLOCK, -(-length // MAX_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _attend_block(
    query: jax.Array,
    sources: list[_Source],
    may_see_nothing: bool = False,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of queries [B, Hkv, G, S, Dh] to all sources together.

    Returns:
        Mean of the values [B, Hkv, G, S, Dh], logarithm of the sum of weights [B, Hkv, G, S, 1].
    """
    dtype = at_least_float32(query.dtype)
    hidden = jnp.finfo(dtype).min
    query = query * query.shape[-1] ** -0.5
    all_scores = []
    for source in sources:
        scores = dot_general(query, source.key, _SCORES, preferred_element_type=dtype)
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        if source.bias is not None:
            scores = scores + jnp.broadcast_to(source.bias.astype(dtype), scores.shape)
        if source.mask is not None:
            scores = jnp.where(jnp.broadcast_to(source.mask, scores.shape), scores, hidden)
        all_scores.append(scores)
    tops = [scores.max(axis=-1, keepdims=True) for scores in all_scores]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))  # the result ignores shifts
    if may_see_nothing:
        top = jnp.maximum(top, hidden / 2)  # then all weights of a query without keys are 0
    totals, mixtures = [], []
    for scores, source in zip(all_scores, sources, strict=True):
        weights = jnp.exp(scores - top)
        totals.append(weights.sum(axis=-1, keepdims=True))
        weights = weights.astype(source.value.dtype)
        mixtures.append(dot_general(weights, source.value, _MIXTURE, preferred_element_type=dtype))
    mixed, total = (functools.reduce(jnp.add, terms) for terms in (mixtures, totals))
    if may_see_nothing:
        total = jnp.where(total == 0, 1, total)
    return mixed / total, jnp.log(total) + top


def make_cache(
    keys: jax.Array, values: jax.Array, length: jax.Array, extra_capacity: int
) -> KVCache:
    """Makes a cache of a memory's keys and values.

    Args:
        keys: [B, L, T, Hkv, Dh].
        values: [B, L, T, Hkv, Dh].
        length: int32 [B], how many of the T hold tokens of each sample.
        extra_capacity: how many more tokens it is to hold.

    Returns:
        A cache with T + extra_capacity slots.
    """
    keys, values = (jnp.transpose(x, (1, 0, 3, 2, 4)) for x in (keys, values))
    return extend_capacity(KVCache(keys, values, length), extra_capacity)


def extend_capacity(cache: Any, extra_capacity: int) -> Any:
    """Returns a `KVCache`, or another cache, with `extra_capacity` more slots.

    Slots are the last but one axis of all but the last array, which is the length.
    """
    *arrays, length = cache

    def extend(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, extra_capacity), (0, 0)])

    return type(cache)(*map(extend, arrays), length)


def append_to_cache(cache: KVCache, keys: jax.Array, values: jax.Array) -> KVCache:
    """Puts keys and values [L, B, S, Hkv, Dh] of new tokens behind those of each sample.

    A cache of S slots holds nothing yet, since the new tokens would not fit behind.

    Examples:
        >>> empty = jnp.zeros((1, 2, 2, 8, 4))  # [L, B, Hkv, T, Dh]
        >>> new = jnp.ones((1, 2, 3, 2, 4))  # [L, B, S, Hkv, Dh]
        >>> cache = lm.KVCache(empty, empty, jnp.array([1, 0]))
        >>> lm.append_to_cache(cache, new, new).length.tolist()
        [4, 3]
    """
    num_samples, num_new = keys.shape[1:3]
    sample = jnp.arange(num_samples)[:, None]
    slot = cache.length[:, None] + jnp.arange(num_new)[None]

    def put(slots: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(slots.dtype)
        if num_new == slots.shape[3]:
            return jnp.swapaxes(new, 2, 3)
        # Not a dynamic_update_slice under vmap, for which XLA copies the cache several times.
        return slots.at[:, sample, :, slot].set(jnp.moveaxis(new, 0, 2))

    return KVCache(put(cache.keys, keys), put(cache.values, values), cache.length + num_new)
