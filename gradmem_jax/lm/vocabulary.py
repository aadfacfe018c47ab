"""Parameters for another vocabulary: what is known of a token goes along with it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.checks import require
from gradmem_jax.sharding import logical_axes, path_name

Params = dict[str, Any]


def change_vocabulary(
    params: Params, drawn: Params, tokens: Mapping[str, int], wanted: Mapping[str, int]
) -> Params:
    """Gives parameters another vocabulary.

    Embeddings and heads keep what they have of every token that both vocabularies hold, under its
    new id; ids of other tokens are as in `drawn`. Everything else stays.

    Args:
        params: parameters of the vocabulary `tokens`.
        drawn: parameters of the same structure for the vocabulary `wanted`.
        tokens: the id of each token that `params` know.
        wanted: the id of each token of the other vocabulary.

    Raises:
        ValueError: the structures differ, or no token is in both.
    """
    names = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    drawn_names = [path_name(path) for path, _ in jax.tree.leaves_with_path(drawn)]
    require(
        names == drawn_names,
        f"params and drawn must have the same parts; {sorted({*names} ^ {*drawn_names})} are in "
        "one of them only.",
    )
    shared = [(tokens[token], new) for token, new in wanted.items() if token in tokens]
    require(bool(shared), "the two vocabularies have no token in common; start anew.")
    old_ids, new_ids = map(jnp.array, zip(*shared, strict=True))

    def change(path: Any, x: jax.Array, fresh: jax.Array) -> jax.Array:
        axes = logical_axes(path_name(path), x.ndim)
        if "vocab" not in axes:
            return x
        axis = axes.index("vocab")
        rows = jnp.take(x, old_ids, axis)
        return jnp.moveaxis(
            jnp.moveaxis(fresh, axis, 0).at[new_ids].set(jnp.moveaxis(rows, axis, 0)), 0, axis
        )

    return jax.tree.map_with_path(change, params, drawn)
