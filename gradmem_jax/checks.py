"""Checks of single values and of a dataclass's fields; every message says what is allowed."""

import dataclasses
import functools
import math
import os
import pathlib
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax.export import is_symbolic_dim

from gradmem_jax.foreign_text import shortened, shown

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
DTYPES = typing.get_args(Dtype)
ENABLE_X64 = 'call jax.config.update("jax_enable_x64", True) first.'
AUTOMATIC = -1  # of a count: have it chosen
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a pathlib.Path makes one slash of two


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message`, no longer than a screen, unless `condition` holds."""
    if not condition:
        raise ValueError(shortened(message))


def is_traced(value: Any) -> bool:
    """Whether `value` is known only inside a transformation such as `jit`."""
    return isinstance(value, jax.core.Tracer)


def is_symbolic(size: Any) -> bool:
    """Whether `jax.export` leaves the size of an axis open."""
    return is_symbolic_dim(size)


def plain(name: str, value: Any) -> Any:
    """Returns a scalar of numpy or JAX as Python's own, and anything else as it is.

    Raises:
        ValueError: `value` is traced.
    """
    require(
        not is_traced(value),
        f"{name} is traced, but its value is needed to compile: mark it static "
        f"(static_argnames={name!r}).",
    )
    is_scalar = getattr(value, "shape", None) == () and hasattr(value, "item")
    is_key = is_scalar and jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)
    return jax.device_get(value).item() if is_scalar and not is_key else value


def require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`, of the same type."""
    value = plain(name, value)
    require(
        any(type(value) is type(choice) and value == choice for choice in choices),
        f"{name}={shown(value)} is not known; choose one of {choices}.",
    )


def require_integer(name: str, value: Any, minimum: int) -> int:
    """Returns a number as int; raises ValueError unless it is whole and at least `minimum`."""
    value = plain(name, value)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    require(
        is_integer and minimum <= value < 2**63,
        f"{name}={shown(value)} must be an integer >= {minimum} and below 2**63.",
    )
    return value


def require_count(name: str, value: Any) -> int:
    """Returns a number that is 1 or more, or `AUTOMATIC`; raises ValueError otherwise."""
    value = plain(name, value)
    if type(value) is int and value == AUTOMATIC:
        return AUTOMATIC
    try:
        return require_integer(name, value, 1)
    except ValueError as error:
        raise ValueError(f"{error} {AUTOMATIC} has it chosen.") from None


def require_number(name: str, value: Any, *, above: float | None = None) -> float:
    """Returns a number; raises ValueError unless it is finite, and above `above` if given."""
    value = plain(name, value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_finite = is_number and (isinstance(value, float) or _fits_float(value))
    is_finite = is_finite and math.isfinite(value)
    require(is_finite, f"{name}={shown(value)} must be a finite number.")
    if above is not None:
        require(value > above, f"{name}={shown(value)} must be greater than {above}.")
    return value


def _fits_float(value: int) -> bool:
    return abs(value) < 2**1023


def require_instance(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError unless `value` is of a type that the annotation `kind` allows."""
    require(_fits(value, kind), f"{name}={shown(value)} must be of type {_type_name(kind)}.")


def require_path(name: str, value: Any) -> pathlib.Path:
    """Returns a path; raises ValueError unless `value` is one or a text."""
    require(
        isinstance(value, str | pathlib.PurePath),
        f"{name}={shown(value)} must be a path: a str or a pathlib.Path.",
    )
    require_local(name, value)
    return pathlib.Path(value)


def require_local(name: str, path: Any) -> None:
    """Raises ValueError if a path is an address such as gs://bucket/run."""
    address = _ADDRESS.match(os.fspath(path)) if isinstance(path, str | os.PathLike) else None
    require(
        address is None,
        f"{name}={shown(str(path))} is an address, and files are read and written in folders of "
        "this machine only. Mount the bucket as a folder (Cloud Storage: gcsfuse) or copy what is "
        "there, and give the folder's path.",
    )


def check_fields(instance: Any) -> None:
    """Checks that the fields of a frozen dataclass have the types they are declared with.

    A `Literal` must be one of its values.

    Scalars of numpy and JAX become Python's own, whole numbers floats where a float is declared,
    paths strings, and lists tuples where a tuple is declared, so that equal configurations are
    equal, hashable, and the same in JSON.

    Args:
        instance: the dataclass, in its `__post_init__`.

    Raises:
        ValueError: a value has another type.
    """
    own_type: Any = type(instance)
    for name, kind in _field_types(own_type).items():
        given = getattr(instance, name)
        value = plain(name, given)
        if typing.get_origin(kind) is tuple and isinstance(value, list):
            value = tuple(value)
        if float in _options(kind) and type(value) is int and _fits_float(value):
            value = float(value)
        if kind is str and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if typing.get_origin(kind) is typing.Literal:
            require_choice(name, value, typing.get_args(kind))
        else:
            require_instance(name, value, kind)
        if value is not given:
            object.__setattr__(instance, name, value)


@functools.cache
def _field_types(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _options(kind: Any) -> Sequence[Any]:
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if is_union else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    options = _options(kind)
    if len(options) > 1:
        return any(_fits(value, option) for option in options)
    if kind is Any:
        return True
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(
            _fits(item, typing.get_args(kind)[0]) for item in value
        )
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)


def _type_name(kind: Any) -> str:
    return " or ".join(
        "None" if option is type(None) else getattr(option, "__name__", str(option))
        for option in _options(kind)
    )
