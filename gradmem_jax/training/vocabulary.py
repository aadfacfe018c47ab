"""Parameters for another vocabulary: what is known of a token goes along with it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.checks import require
from gradmem_jax.parallel.sharding import logical_axes
from gradmem_jax.trees import Params, path_name


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
        ValueError: `params` and `drawn` differ in more than the number of tokens, they have no row
            of an id, or no token is in both vocabularies.
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
    old_ids, new_ids = map(np.array, zip(*shared, strict=True))

    def change(path: Any, x: jax.Array, fresh: jax.Array) -> jax.Array:
        name = path_name(path)
        axes = logical_axes(name, x.ndim)
        axis = axes.index("vocab") if "vocab" in axes else None

        def beside(shape: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(n for i, n in enumerate(shape) if i != axis)

        require(
            beside(x.shape) == beside(fresh.shape),
            f"{name} has shape {x.shape} in params and {fresh.shape} in drawn; only the number of "
            "tokens may differ.",
        )
        if axis is None:
            return x
        for ids, size in ((old_ids, x.shape[axis]), (new_ids, fresh.shape[axis])):
            require(
                bool((ids >= 0).all() and (ids < size).all()),
                f"{name} has rows of {size} ids, the tokens have {ids.min()} to {ids.max()}; is "
                "this the vocabulary of these parameters?",
            )
        rows, moved = jnp.moveaxis(x, axis, 0), jnp.moveaxis(fresh, axis, 0)
        return jnp.moveaxis(moved.at[new_ids].set(rows[old_ids]), 0, axis)

    return jax.tree.map_with_path(change, params, drawn)
