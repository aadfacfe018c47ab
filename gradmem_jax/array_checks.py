"""Checks of arrays at the border of the library: before any compile, with a remedy."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict

from gradmem_jax.checks import is_traced, require, require_integer
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.foreign_text import shown
from gradmem_jax.trees import named_leaves

_SHOWN = 5  # differences that a message names


def as_array(name: str, value: Any, expected: str) -> Any:
    """Returns an array as it is, and anything else as numpy has it; or raises ValueError."""
    if isinstance(value, jax.Array):
        return value
    try:
        return np.asarray(value)
    except Exception as error:  # ragged lists, or objects that refuse
        raise ValueError(f"{name} is no array; give {expected}.") from error


def on_device(tree: Any) -> Any:
    """Returns a tree whose arrays are JAX's; what is not one yet is copied explicitly."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), tree)


def check_ids(
    name: str,
    ids: Any,
    shape: tuple[str, ...] | str,
    vocab_size: int,
    pad_id: int | None = None,
) -> jax.Array:
    """Checks token ids and returns them as an array.

    Args:
        name: what the ids are called in messages.
        ids: the token ids, an array or nested lists.
        shape: names of the axes, such as ("B", "S").
        vocab_size: ids must be in [0, vocab_size); checked when the values are known.
        pad_id: padding, which may stand behind the tokens only; checked likewise.

    Returns:
        An int32 array.

    Raises:
        ValueError: wrong number of axes, an empty axis, not integers, ids out of range, or
            padding before a token.
    """
    expected = f"[{', '.join(shape)}]"
    ids = as_array(name, ids, f"int ids of shape {expected}")
    if ids.ndim != len(shape):
        raise ValueError(f"{name} has shape {ids.shape}; give int ids of shape {expected}.")
    if 0 in ids.shape:
        raise ValueError(
            f"{name} has shape {ids.shape}; every axis of {expected} needs at least one entry."
        )
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {ids.dtype}; token ids must be integers.")
    if not is_traced(ids):
        # Looked at before the conversion to 32 bits, which would wrap what does not fit.
        values = np.asarray(jax.device_get(ids))
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} holds ids from {low} to {high}; the model's vocabulary is "
                f"[0, {vocab_size}). Is this the tokenizer of this model?"
            )
        if pad_id is not None:
            padding = values == pad_id
            before_token = padding[..., :-1] & ~padding[..., 1:]
            if before_token.any():
                row = tuple(int(i) for i in np.argwhere(before_token)[0][:-1])
                raise ValueError(
                    f"{name}{list(row)} has padding, pad_id={pad_id}, before a token; pad on the "
                    "right, and leave the id out of the text."
                )
    return on_device(ids if ids.dtype == np.int32 else ids.astype(np.int32))


def check_key(key: Any) -> None:
    """Raises ValueError unless `key` is one JAX random key, of the new kind or the old."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    is_old = dtype == np.uint32 and shape is not None and len(shape) == 1 and shape[0] in (2, 4)
    require(is_new or is_old, f"key={key!r} must be one JAX random key: jax.random.key(0).")


def check_length(name: str, length: int, prefix_length: int, max_positions: int) -> None:
    """Raises ValueError unless memory and `length` tokens fit into the model's positions."""
    limit = max_positions - prefix_length
    try:
        too_long = length > limit
    except jax.errors.InconclusiveDimensionOperation:
        raise ValueError(
            f"{name} has {length} tokens, which may be more than the {limit} that the model has "
            "positions for; say that they are not: jax.export.symbolic_shape(..., "
            f"constraints=['{length} <= {limit}'])."
        ) from None
    if too_long:
        remedy = f"Shorten it to {limit}" if limit > 0 else "Take a smaller memory"
        raise ValueError(
            f"{name} has {length} tokens behind {prefix_length} of memory and control tokens; the "
            f"model has {max_positions} positions. {remedy} or raise lm.max_positions."
        )


def check_memory(memory: Any, expected: Any) -> None:
    """Raises ValueError unless `memory` has the structure, shapes and dtypes of `expected`.

    Args:
        memory: pytree of arrays.
        expected: pytree of arrays or `jax.ShapeDtypeStruct`.
    """
    require(
        not isinstance(memory, list),
        "memory is a list; give the arrays that write_memory returned.",
    )
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
        dtype = given.dtype if hasattr(given, "dtype") else np.asarray(given).dtype
        if getattr(dtype, "kind", None) in ("f", "i", "u", "b"):
            dtype = jax.dtypes.canonicalize_dtype(dtype)  # what JAX takes numpy's 64 bits for
        if dtype != want.dtype:
            raise ValueError(
                f"memory has an array of dtype {dtype} where this model's has {want.dtype}; "
                f"convert it: x.astype({str(want.dtype)!r})."
            )
        values = None if is_traced(given) else np.asarray(jax.device_get(given), np.float32)
        if values is not None and not np.isfinite(values).all():
            raise ValueError(
                "memory holds NaN or infinite values; the WRITE that made it diverged. Use a "
                "smaller write learning rate, or clip its gradient."
            )


def check_params(params: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ValueError, naming differences, unless parameters have the expected shapes.

    Args:
        params: nested dict of arrays.
        expected: nested dict of arrays or `jax.ShapeDtypeStruct`.
    """
    require(
        isinstance(params, Mapping),
        f"the parameters are a {type(params).__name__}; give the nested dict that init returned.",
    )
    require(
        not any(isinstance(x, FrozenDict) for x in (params, *params.values())),
        "the parameters are a FrozenDict; give a dict: flax.core.unfreeze(params).",
    )
    found, wanted = _shapes(params), _shapes(expected)
    problems = [f"there is no {path!r}" for path in wanted if path not in found]
    problems += [f"{path!r} is unexpected" for path in found if path not in wanted]
    problems += [
        f"{path!r} has shape {found[path]} instead of {shape}"
        for path, shape in wanted.items()
        if found.get(path, shape) != shape
    ]
    more = f"; and {len(problems) - _SHOWN} more differences" if problems[_SHOWN:] else ""
    hint = " Take them out of {'params': ...}." if set(params) == {"params"} else ""
    require(
        not problems,
        "the parameters do not fit their configuration: "
        f"{'; '.join(problems[:_SHOWN])}{more}.{hint}",
    )


def require_finite(tree: Any, what: str) -> None:
    """Raises ValueError, naming an array, unless all numbers of a tree are finite."""
    for name, x in named_leaves(tree).items():
        require(
            not jnp.issubdtype(x.dtype, jnp.inexact) or bool(_all_finite(x)),
            f"{what} are not finite, such as {shown(name)}; with them every answer would be "
            "empty. Take others.",
        )


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all()


def _shapes(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes by path; of what is no array, the name of its type."""
    return {
        "/".join(map(str, path)): getattr(x, "shape", type(x).__name__)
        for path, x in flatten_dict(tree).items()
    }


def resolve_steps(
    num_steps: Any, max_steps: int | None, batch_size: int
) -> tuple[int, jax.Array | None]:
    """Checks a number of WRITE steps.

    Args:
        num_steps: K, a whole number or an array of them, scalar or [B], perhaps traced.
        max_steps: its static upper bound, which a traced K needs.
        batch_size: B.

    Returns:
        The steps to compile, and K of each sample, int32 [B]; None if all take these.

    Raises:
        ValueError: K is no whole number, negative, above its bound, or traced without one.
    """
    if max_steps is not None and not is_traced(max_steps):
        max_steps = _bounded("max_steps", require_integer("max_steps", max_steps, 0))
    if is_traced(num_steps) or is_traced(max_steps):
        require(
            max_steps is not None and not is_traced(max_steps),
            "num_steps is traced: mark it static (static_argnames='num_steps'), or give a static "
            "max_steps as its upper bound.",
        )
        bound = int(max_steps or 0)
        steps = _whole_numbers(num_steps, batch_size)
        return bound, jnp.clip(steps.astype(jnp.int32), 0, bound)
    if np.ndim(num_steps):
        steps = np.asarray(jax.device_get(_whole_numbers(num_steps, batch_size)))
        low, high = (_bounded("num_steps", int(x)) for x in (steps.min(), steps.max()))
        require(low >= 0, f"num_steps holds {low}; it must not be negative.")
        bound = high if max_steps is None else max_steps
        require(high <= bound, f"num_steps holds {high}, more than max_steps={max_steps}.")
        return bound, jax.device_put(steps.astype(np.int32))
    steps = _bounded("num_steps", require_integer("num_steps", num_steps, 0))
    require(
        max_steps is None or steps <= max_steps,
        f"num_steps={steps} is greater than max_steps={max_steps}.",
    )
    return steps, None


def _whole_numbers(num_steps: Any, batch_size: int) -> Any:
    """Returns numbers of steps [B], of a scalar or [B]."""
    steps = as_array("num_steps", num_steps, "whole numbers")
    require(
        steps.shape in ((), (batch_size,)) and jnp.issubdtype(steps.dtype, jnp.integer),
        f"num_steps has shape {steps.shape} and dtype {steps.dtype}; give one whole number, or "
        f"one for each of the {batch_size} samples.",
    )
    return jnp.broadcast_to(steps, (batch_size,)) if is_traced(steps) else steps


def _bounded(name: str, steps: int) -> int:
    require(steps < 2**31, f"{name}={steps} is more than any WRITE can take; it must be < 2**31.")
    return steps


def numbers_per_sample(
    name: str, value: Any, batch_size: int, *, is_rate: bool = False
) -> jax.Array | None:
    """Returns one number for each sample, float [B], of one number or [B], perhaps traced.

    Args:
        name: what the numbers are called in messages.
        value: the numbers; None stays None.
        batch_size: B.
        is_rate: they must be finite, and 0 or more; checked when the values are known.

    Raises:
        ValueError: `value` is something else, NaN, or no rate.
    """
    if value is None:
        return None
    values = as_array(name, value, "one number, or one for each sample")
    require(
        values.shape in ((), (batch_size,))
        and values.dtype != bool
        and jnp.issubdtype(values.dtype, jnp.number)
        and not jnp.issubdtype(values.dtype, jnp.complexfloating),
        f"{name}={value!r} must be a number, or None; or one for each of the {batch_size} samples.",
    )
    dtype = jax.dtypes.canonicalize_dtype(at_least_float32(values.dtype))
    if not is_traced(values):
        known = np.asarray(jax.device_get(values), np.float64)
        require(
            not np.isnan(known).any()
            and (not is_rate or bool(((known >= 0) & (known <= jnp.finfo(dtype).max)).all())),
            f"{name}={value!r} must be a number" + (", finite and 0 or more." if is_rate else "."),
        )
    if isinstance(values, jax.Array):
        return jnp.broadcast_to(values.astype(dtype), (batch_size,))
    return jax.device_put(np.broadcast_to(values.astype(dtype), (batch_size,)))


def check_per_sample(name: str, tree: Any, batch_size: int) -> Any:
    """Returns a tree of arrays as it is; raises ValueError unless all are [B, ...]."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(tree)]
    require(
        all(shape[:1] == (batch_size,) for shape in shapes),
        f"{name} has arrays of shapes {shapes[:_SHOWN]}; each needs a leading axis of the "
        f"{batch_size} samples.",
    )
    return on_device(tree)
