"""The passes of causal attention, as what a pair of blocks adds to a sum.

A pass goes, for each block of queries, over the blocks of keys that it sees, or the other way
round. `kernels.py` walks; here stands the arithmetic, the same for every machine. The tangent of a
pass is the sum of the tangents of what each pair adds, so nothing is written twice.

With `log_sum_exp` known, weights are exp(scores - log_sum_exp) and the forward pass is a plain sum
as well: of weights, which is 1, and of weighted values. The tangent of its mean is therefore that
of the second sum minus mean times that of the first, and the first's is that of `log_sum_exp`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradmem_jax.dtypes import at_least_float32

Arrays = tuple[jax.Array, ...]


class Pass(NamedTuple):
    """One way over the pairs of blocks.

    Queries are arrays [s, D] or, of one number a query, [s, 1]; keys are arrays [t, D].

    Attributes:
        over_keys: whether the block of queries stays and those of keys go by.
        start: `(queries or keys that stay) -> sums`.
        add: `(sums, queries, keys, seen) -> sums`, `seen` bool [s, t].
        finish: `(sums, queries or keys that stay) -> results`, in the sums' dtype.
        products: matrix products of a pair of blocks.
    """

    over_keys: bool
    start: Callable[[Arrays], Arrays]
    add: Callable[[Arrays, Arrays, Arrays, jax.Array], Arrays]
    finish: Callable[[Arrays, Arrays], Arrays]
    products: int


def _dot(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    dtype = at_least_float32(left.dtype)
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=dtype)


def _scores(query: jax.Array, key: jax.Array, seen: jax.Array) -> jax.Array:
    scores = _dot(query, key, (1, 1))
    return jnp.where(seen, scores, jnp.finfo(scores.dtype).min)


def _weigh(queries: Arrays, keys: Arrays, seen: jax.Array) -> Arrays:
    """Sum of weights [s, 1] and of weighted values [s, D], of query and what scores lose."""
    (query, top), (key, value) = queries, keys
    weights = jnp.exp(_scores(query, key, seen) - top)
    total = weights.sum(axis=1, keepdims=True)
    return total, _dot(weights.astype(value.dtype), value, (1, 0))


def _pull(queries: Arrays, keys: Arrays, seen: jax.Array) -> Arrays:
    """Cotangents of scores and the weights, both [s, t] in the dtype of products."""
    (query, d_mean, log_sum_exp, shift), (key, value) = queries, keys
    weights = jnp.exp(_scores(query, key, seen) - log_sum_exp)
    d_weights = _dot(d_mean.astype(value.dtype), value, (1, 1))
    return (weights * (d_weights + shift)).astype(query.dtype), weights.astype(value.dtype)


def _pull_to_queries(queries: Arrays, keys: Arrays, seen: jax.Array) -> Arrays:
    d_scores, _ = _pull(queries, keys, seen)
    return (_dot(d_scores, keys[0], (1, 0)),)


def _pull_to_keys(queries: Arrays, keys: Arrays, seen: jax.Array) -> Arrays:
    d_scores, weights = _pull(queries, keys, seen)
    query, d_mean, *_ = queries
    d_mean = d_mean.astype(weights.dtype)
    return _dot(d_scores, query, (0, 0)), _dot(weights, d_mean, (0, 0))


def _zeros(like: jax.Array, width: int | None = None) -> jax.Array:
    shape = (like.shape[0], like.shape[1] if width is None else width)
    return jnp.zeros(shape, at_least_float32(like.dtype))


def _plus(sums: Arrays, terms: Arrays) -> Arrays:
    return tuple(x + term for x, term in zip(sums, terms, strict=True))


def _sums(sums: Arrays, staying: Arrays) -> Arrays:
    del staying
    return sums


def _halves(arrays: Arrays) -> tuple[Arrays, Arrays]:
    half = len(arrays) // 2
    return arrays[:half], arrays[half:]


def _tangents_added(
    terms: Callable[[Arrays, Arrays, jax.Array], Arrays],
) -> Callable[[Arrays, Arrays, Arrays, jax.Array], Arrays]:
    """`add` of queries and keys behind which their tangents stand."""

    def add(sums: Arrays, queries: Arrays, keys: Arrays, seen: jax.Array) -> Arrays:
        (queries, d_queries), (keys, d_keys) = _halves(queries), _halves(keys)

        def of_pair(queries: Arrays, keys: Arrays) -> Arrays:
            return terms(queries, keys, seen)

        return _plus(sums, jax.jvp(of_pair, (queries, keys), (d_queries, d_keys))[1])

    return add


def _start_online(queries: Arrays) -> Arrays:
    (query,) = queries
    rows = _zeros(query, 1)
    return jnp.full_like(rows, jnp.finfo(rows.dtype).min), rows, _zeros(query)


def _add_online(sums: Arrays, queries: Arrays, keys: Arrays, seen: jax.Array) -> Arrays:
    (query,), (top, total, mixed) = queries, sums
    new_top = jnp.maximum(top, _scores(query, keys[0], seen).max(axis=1, keepdims=True))
    more, more_mixed = _weigh((query, new_top), keys, seen)
    scale = jnp.exp(top - new_top)
    return new_top, total * scale + more, mixed * scale + more_mixed


def _finish_online(sums: Arrays, queries: Arrays) -> Arrays:
    del queries
    top, total, mixed = sums
    return mixed / total, top + jnp.log(total)


def _start_weighing(queries: Arrays) -> Arrays:
    query, *_ = queries
    return _zeros(query, 1), _zeros(query)


def _add_weighing(sums: Arrays, queries: Arrays, keys: Arrays, seen: jax.Array) -> Arrays:
    query, _, log_sum_exp, d_query = queries
    still = (query, log_sum_exp, d_query, jnp.zeros_like(log_sum_exp))
    return _tangents_added(_weigh)(sums, still, keys, seen)


def _finish_weighing(sums: Arrays, queries: Arrays) -> Arrays:
    d_total, d_mixed = sums
    return d_mixed - queries[1] * d_total, d_total


def _start_queries(queries: Arrays) -> Arrays:
    return (_zeros(queries[0]),)


def _start_keys(keys: Arrays) -> Arrays:
    return _zeros(keys[0]), _zeros(keys[1])


def _add_to_queries(sums: Arrays, queries: Arrays, keys: Arrays, seen: jax.Array) -> Arrays:
    return _plus(sums, _pull_to_queries(queries, keys, seen))


def _add_to_keys(sums: Arrays, queries: Arrays, keys: Arrays, seen: jax.Array) -> Arrays:
    return _plus(sums, _pull_to_keys(queries, keys, seen))


# Queries (query); keys (key, value); results (mean, log_sum_exp).
FORWARD = Pass(True, _start_online, _add_online, _finish_online, 2)
# Queries (query, mean, log_sum_exp, d_query); keys (key, value, d_key, d_value).
FORWARD_TANGENT = Pass(True, _start_weighing, _add_weighing, _finish_weighing, 5)
# Queries (query, d_mean, log_sum_exp, shift); keys (key, value); results (d_query).
BACKWARD_QUERIES = Pass(True, _start_queries, _add_to_queries, _sums, 3)
# The same; results (d_key, d_value).
BACKWARD_KEYS = Pass(False, _start_keys, _add_to_keys, _sums, 4)
# The same with tangents behind all queries, and behind all keys.
BACKWARD_QUERIES_TANGENT = Pass(True, _start_queries, _tangents_added(_pull_to_queries), _sums, 8)
BACKWARD_KEYS_TANGENT = Pass(False, _start_keys, _tangents_added(_pull_to_keys), _sums, 10)
