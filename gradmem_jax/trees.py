"""Trees of arrays: names of their types and leaves, and which of them are frozen."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from gradmem_jax.checks import require

PyTree = Any
Params = dict[str, Any]
"""Parameters: a nested dict, arrays by name in the modules around them.

Examples:
    >>> sorted(params)
    ['initial_memory', 'lm', 'write_head']
    >>> params["initial_memory"].shape  # [m, d]
    (2, 8)
"""


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path, as in `state/0`; a tree of one array has `memory`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {path_name(path) or "memory": leaf for path, leaf in leaves}


def split_params(params: Params, frozen: Sequence[str]) -> tuple[Params, Params]:
    """Splits parameters into those that are trained and those that are not.

    Args:
        params: nested dict.
        frozen: regular expressions; a parameter is frozen if one of them is found in its path,
            such as "lm/layers_0/attention/query/kernel". `^lm/` freezes the language model.

    Returns:
        Two nested dicts, which `join_params` puts together again.

    Raises:
        ValueError: `frozen` is one text, an expression is none or matches no parameter, or
            everything is frozen.
    """
    require(
        not isinstance(frozen, str),
        f"frozen={frozen!r} is one text; give a tuple of expressions, frozen=({frozen!r},).",
    )
    if not frozen:
        return params, {}
    flat = flatten_dict(params, sep="/")
    chosen: set[str] = set()
    for pattern in frozen:
        try:
            matched = {path for path in flat if re.search(pattern, path)}
        except re.error as error:
            raise ValueError(f"frozen {pattern!r} is no regular expression: {error}.") from error
        require(bool(matched), f"frozen {pattern!r} matches no parameter; they are {sorted(flat)}.")
        chosen |= matched
    require(chosen != set(flat), f"frozen={tuple(frozen)} leaves no parameter to train.")

    def part(wanted: bool) -> Params:
        leaves = {path: x for path, x in flat.items() if (path in chosen) == wanted}
        return unflatten_dict(leaves, sep="/")

    return part(False), part(True)


def join_params(trained: Params, frozen: Params) -> Params:
    """Puts together what `split_params` split."""
    if not frozen:
        return trained
    return unflatten_dict({**flatten_dict(trained), **flatten_dict(frozen)})


def split_floats(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Splits a tree into arrays of floating numbers and others, None in the place of the rest."""

    def part(wanted: bool) -> PyTree:
        return jax.tree.map(
            lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) == wanted else None, tree
        )

    return part(True), part(False)


def join_floats(floats: PyTree, others: PyTree) -> PyTree:
    """Puts together what `split_floats` split."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, floats, others, is_leaf=lambda x: x is None
    )


def path_name(path: Any) -> str:
    """A path of JAX as `lm/layers_0/attention/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
