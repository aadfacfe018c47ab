"""Causal attention by itself, for those who differentiate a gradient."""

from typing import Literal

import jax
import jax.numpy as jnp

from gradmem_jax.checks import require, require_choice
from gradmem_jax.lm.attention import attend

IMPLEMENTATIONS = ("auto", "xla", "pallas")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    implementation: Literal["auto", "xla", "pallas"] = "auto",
) -> jax.Array:
    """Causal attention whose gradient can be differentiated without arrays [S, S].

    Scores are scaled by 1 / sqrt(D). Softmax and sums are float32 at least.

    Args:
        query: [B, S, H, D], floating.
        key: [B, S, Hkv, D], dtype of query; Hkv divides H, and each key serves H / Hkv neighbouring
            heads.
        value: [B, S, Hkv, D], dtype of query.
        implementation: "pallas" takes kernels on TPU and NVIDIA GPU for float32 and bfloat16,
            on GPU for float16 too, and loops over blocks elsewhere; values, gradients and forward
            over reverse (`jax.jvp` of `jax.grad`) take linear memory, forward mode works too, and
            further derivatives are exact but may keep every block. "auto" loops over blocks where
            S is long; JAX refuses forward mode through it unless a gradient was taken first. "xla"
            goes through queries, some after the others where S is long, and takes any derivative.

    Returns:
        [B, S, H, D], dtype of query.

    Raises:
        ValueError: wrong shapes, dtypes or implementation.

    Examples:
        >>> query = jax.random.normal(jax.random.key(0), (1, 6, 4, 8))  # [B, S, H, D]
        >>> key = value = query[:, :, :2]  # [B, S, Hkv, D]
        >>> gradmem_jax.attention(query, key, value).shape
        (1, 6, 4, 8)
    """
    require_choice("implementation", implementation, IMPLEMENTATIONS)
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    require(
        query.ndim == key.ndim == 4
        and key.shape == value.shape
        and (*query.shape[:2], query.shape[3]) == (*key.shape[:2], key.shape[3])
        and min(query.shape) > 0
        and key.shape[2] > 0
        and query.shape[2] % key.shape[2] == 0,
        f"{shapes} must be [B, S, H, D] and twice [B, S, Hkv, D], none of them 0, where Hkv "
        "divides H.",
    )
    dtypes = {x.dtype for x in (query, key, value)}
    require(
        len(dtypes) == 1 and jnp.issubdtype(query.dtype, jnp.floating),
        f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}; "
        "they must be of one floating dtype.",
    )
    return attend(query, key, value, method=implementation).mean.astype(query.dtype)
