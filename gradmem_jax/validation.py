"""Checks of arrays at the border of the library: before any compile, with a remedy."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from gradmem_jax.config import require, require_integer


def is_traced(value: Any) -> bool:
    """Whether `value` is known only inside a transformation such as `jit`."""
    return isinstance(value, jax.core.Tracer)


def check_ids(name: str, ids: Any, shape: tuple[str, ...] | str, vocab_size: int) -> jax.Array:
    """Checks token ids and returns them as an array.

    Args:
        name: what the ids are called in messages.
        ids: the token ids.
        shape: names of the axes, such as ("B", "S").
        vocab_size: ids must be in [0, vocab_size); checked when the values are known.

    Raises:
        ValueError: wrong number of axes, an empty axis, not integers, or ids out of range.
    """
    ids = ids if is_traced(ids) else jnp.asarray(ids)
    expected = f"[{', '.join(shape)}]"
    if ids.ndim != len(shape):
        raise ValueError(f"{name} has shape {ids.shape}; give int ids of shape {expected}.")
    if 0 in ids.shape:
        raise ValueError(
            f"{name} has shape {ids.shape}; every axis of {expected} needs at least one entry."
        )
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {ids.dtype}; token ids must be integers.")
    if not is_traced(ids):
        values = np.asarray(ids)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} holds ids from {low} to {high}; the model's vocabulary is "
                f"[0, {vocab_size}). Is this the tokenizer of this model?"
            )
    return ids


def check_length(name: str, length: int, prefix_length: int, max_positions: int) -> None:
    """Raises ValueError unless memory and `length` tokens fit into the model's positions."""
    if prefix_length + length > max_positions:
        raise ValueError(
            f"{name} has {length} tokens behind {prefix_length} of memory and control tokens; the "
            f"model has {max_positions} positions. Shorten it to "
            f"{max_positions - prefix_length} or raise lm.max_positions."
        )


def check_memory(memory: Any, expected: Any) -> None:
    """Raises ValueError unless `memory` has the structure and shapes of `expected`.

    Args:
        memory: pytree of arrays.
        expected: pytree of arrays or `jax.ShapeDtypeStruct`.
    """
    structure: Any = jax.tree.structure(memory)
    wanted: Any = jax.tree.structure(expected)
    if structure != wanted:
        raise ValueError(
            f"memory is a {structure}, this model's is a {wanted}; was it written by a model of "
            "another configuration?"
        )
    for given, want in zip(jax.tree.leaves(memory), jax.tree.leaves(expected), strict=True):
        if jnp.shape(given) != want.shape:
            raise ValueError(
                f"memory has an array of shape {jnp.shape(given)} where this model and batch need "
                f"{want.shape}."
            )
        is_float = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in (given, want)]
        if is_float[0] != is_float[1]:
            kind = "floating" if is_float[1] else "an integer"
            raise ValueError(f"memory has dtype {jnp.result_type(given)}; it must be {kind}.")
        if not is_traced(given) and not np.isfinite(np.asarray(given, np.float32)).all():
            raise ValueError(
                "memory holds NaN or infinite values; the WRITE that made it diverged. Use a "
                "smaller write learning rate, or clip its gradient."
            )


def check_params(params: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ValueError, naming all differences, unless parameters have the expected shapes.

    Args:
        params: nested dict of arrays.
        expected: nested dict of arrays or `jax.ShapeDtypeStruct`.
    """
    shapes = lambda tree: {
        path: tuple(jnp.shape(x)) for path, x in flatten_dict(tree, sep="/").items()
    }
    found, wanted = shapes(params), shapes(expected)
    problems = [f"there is no {path!r}" for path in wanted if path not in found]
    problems += [f"{path!r} is unexpected" for path in found if path not in wanted]
    problems += [
        f"{path!r} has shape {found[path]} instead of {shape}"
        for path, shape in wanted.items()
        if found.get(path, shape) != shape
    ]
    require(not problems, f"the parameters do not fit their configuration: {'; '.join(problems)}.")


def resolve_steps(
    num_steps: int | jax.Array, max_steps: int | None
) -> tuple[int, jax.Array | None]:
    """Checks a number of WRITE steps.

    Args:
        num_steps: K, perhaps traced.
        max_steps: its static upper bound, which a traced K needs.

    Returns:
        The steps to compile, and K if it is traced.

    Raises:
        ValueError: K is no whole number, negative, above its bound, or traced without one.
    """
    if is_traced(num_steps) or is_traced(max_steps):
        require(
            max_steps is not None and not is_traced(max_steps),
            "num_steps is traced: mark it static (static_argnames='num_steps'), or give a static "
            "max_steps as its upper bound.",
        )
        require_integer("max_steps", max_steps, 0)
        return int(max_steps or 0), jnp.asarray(num_steps)
    steps = num_steps.item() if hasattr(num_steps, "item") else num_steps
    require_integer("num_steps", steps, 0)
    require(
        max_steps is None or steps <= max_steps,
        f"num_steps={steps} is greater than max_steps={max_steps}.",
    )
    return steps, None
