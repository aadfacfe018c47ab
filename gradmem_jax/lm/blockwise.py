"""Causal attention in linear memory, through a second derivative too.

No array [S, S] is ever there: scores are made for one block of queries and one of keys at a time,
with a running maximum and sum (online softmax), and again from the saved logarithm of the sum where
they are differentiated. The backward pass is written here; the tangents of both passes are JAX's,
which for a loop take no more than its carry. So forward over reverse, what WRITE needs, is linear
in memory. Reverse over reverse is right, but keeps every block.

    P = exp(Q K^T - log_sum_exp), out = P V
    dV = P^T dout, dP = dout V^T, dS = P * (dP - sum(dout * out) + dlog_sum_exp)
    dQ = dS K, dK = dS^T Q
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.parallel.any_mesh import vary_like
from gradmem_jax.precision import at_precision, current_precision

Arrays = tuple[jax.Array, ...]


def causal_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """Attention of each query to its own position's key and those before it.

    Args:
        query: [B, Hkv, G, S, D], scaled already.
        key: [B, Hkv, S, D].
        value: [B, Hkv, S, D].
        block: queries and keys of a block.

    Returns:
        Mean of the values [B, Hkv, G, S, D], logarithm of the sum of weights [B, Hkv, G, S, 1],
        float32 at least.
    """
    return _attention(query, key, value, block, current_precision())


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, block: int, precision: str | None
) -> tuple[jax.Array, jax.Array]:
    return at_precision(forward, precision)(query, key, value, block)


def forward(
    query: jax.Array, key: jax.Array, value: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """`causal_attention`, without a backward pass of its own."""
    dtype, length = at_least_float32(query.dtype), query.shape[3]
    q, k, v = (_padded(x, block) for x in (query, key, value))
    rows = (*q.shape[:4], 1)
    start = (
        jnp.full(rows, jnp.finfo(dtype).min, dtype),
        jnp.zeros(rows, dtype),
        jnp.zeros(q.shape, dtype),
    )

    def add(carry: Arrays, pair: jax.Array) -> tuple[Arrays, None]:
        i, j = pair * block
        scores = _scores(_rows(q, i, block), _rows(k, j, block), i, j, dtype)
        top, total, mixed = (_rows(x, i, block) for x in carry)
        new_top = jnp.maximum(top, jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        weights, scale = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        total = total * scale + weights.sum(axis=-1, keepdims=True)
        mixed = mixed * scale + _mix(weights, _rows(v, j, block), dtype)
        new = (new_top, total, mixed)
        return tuple(_put(x, y, i) for x, y in zip(carry, new, strict=True)), None

    top, total, mixed = _over_pairs(add, vary_like(start, (q, k, v)), q, block)
    total = jnp.where(total == 0, 1, total)  # of padding
    mean = (mixed / total)[..., :length, :]
    log_sum_exp = (jnp.log(total) + top)[..., :length, :]
    return mean, log_sum_exp


def shift_of(mean: jax.Array, d_mean: jax.Array, d_log_sum_exp: jax.Array) -> jax.Array:
    """What is added to the cotangents of a query's weights, [B, Hkv, G, S, 1]."""
    return d_log_sum_exp - (d_mean * mean).sum(axis=-1, keepdims=True)


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    d_mean: jax.Array,
    log_sum_exp: jax.Array,
    shift: jax.Array,
    block: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents of query, key and value.

    Args:
        query: see `causal_attention`.
        key: see `causal_attention`.
        value: see `causal_attention`.
        d_mean: cotangent of the mean [B, Hkv, G, S, D].
        log_sum_exp: [B, Hkv, G, S, 1].
        shift: see `shift_of`.
        block: queries and keys of a block.
    """
    dtype, length = d_mean.dtype, query.shape[3]
    padded = (_padded(x, block) for x in (query, key, value, d_mean, log_sum_exp, shift))
    q, k, v, d_mean, log_sum_exp, shift = padded

    def add(carry: Arrays, pair: jax.Array) -> tuple[Arrays, None]:
        i, j = pair * block
        q_i, d_i, lse_i, shift_i = (_rows(x, i, block) for x in (q, d_mean, log_sum_exp, shift))
        k_j, v_j = (_rows(x, j, block) for x in (k, v))
        weights = jnp.exp(_scores(q_i, k_j, i, j, dtype) - lse_i)
        d_i = d_i.astype(v.dtype)
        d_weights = jnp.einsum("bhgsd,bhtd->bhgst", d_i, v_j, preferred_element_type=dtype)
        d_scores = (weights * (d_weights + shift_i)).astype(q.dtype)
        parts = (
            _mix(d_scores, k_j, dtype),
            jnp.einsum("bhgst,bhgsd->bhtd", d_scores, q_i, preferred_element_type=dtype),
            jnp.einsum(
                "bhgst,bhgsd->bhtd", weights.astype(v.dtype), d_i, preferred_element_type=dtype
            ),
        )
        places = zip(carry, parts, (i, j, j), strict=True)
        return tuple(_put(x, _rows(x, at, block) + new, at) for x, new, at in places), None

    start = tuple(jnp.zeros(x.shape, dtype) for x in (q, k, v))
    start = vary_like(start, (q, k, v, d_mean, shift))
    found = _over_pairs(add, start, q, block)
    d_query, d_key, d_value = (x[..., :length, :] for x in found)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)


def _forward_and_save(
    query: jax.Array, key: jax.Array, value: jax.Array, block: int, precision: str | None
) -> tuple[tuple[jax.Array, jax.Array], Arrays]:
    mean, log_sum_exp = at_precision(forward, precision)(query, key, value, block)
    return (mean, log_sum_exp), (query, key, value, mean, log_sum_exp)


def _backward_of_saved(
    block: int, precision: str | None, saved: Arrays, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, mean, log_sum_exp = saved
    d_mean, d_log_sum_exp = cotangents
    shift = shift_of(mean, d_mean, d_log_sum_exp)
    pull = at_precision(backward, precision)
    return pull(query, key, value, d_mean, log_sum_exp, shift, block)


_attention.defvjp(_forward_and_save, _backward_of_saved)


def _over_pairs(
    add: Callable[[Arrays, jax.Array], tuple[Arrays, None]],
    start: Arrays,
    query: jax.Array,
    block: int,
) -> Arrays:
    """Calls `add(carry, (i, j))` for all blocks of queries i and of keys j that see one another.

    Without the checkpoint, JAX would compute the masks of all pairs beforehand where it transposes
    the loop, and keep them.
    """
    count = query.shape[3] // block
    pairs = np.array([(i, j) for i in range(count) for j in range(i + 1)], np.int32)
    step = jax.checkpoint(add, prevent_cse=False)
    return jax.lax.scan(step, start, jnp.asarray(pairs))[0]


def _scores(
    query: jax.Array, key: jax.Array, i: jax.Array, j: jax.Array, dtype: np.dtype
) -> jax.Array:
    """Scores of a block [B, Hkv, G, s, t], of queries from `i` on and keys from `j` on."""
    scores = jnp.einsum("bhgsd,bhtd->bhgst", query, key, preferred_element_type=dtype)
    size = scores.shape[-1]
    seen = j + jnp.arange(size)[None] <= i + jnp.arange(size)[:, None]
    return jnp.where(seen[None, None, None], scores, jnp.finfo(dtype).min)


def _mix(weights: jax.Array, values: jax.Array, dtype: np.dtype) -> jax.Array:
    weights = weights.astype(values.dtype)
    return jnp.einsum("bhgst,bhtd->bhgsd", weights, values, preferred_element_type=dtype)


def _padded(x: jax.Array, block: int) -> jax.Array:
    """The last but one axis filled up to a multiple of `block`."""
    left = -x.shape[-2] % block
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, left), (0, 0)])


def _rows(x: jax.Array, start: jax.Array, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, count, x.ndim - 2)


def _put(x: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, rows, start, x.ndim - 2)
