"""What is compiled for a model, which equal models have in common.

Two models are equal if their fields are: the same numbers and names, the same optimizer object. JAX
keeps what it compiled by the function object, and a bound method is a new one each time. So here is
one function for all equal models, for as many as `MAX_MODELS` of them.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.checks import is_traced
from gradmem_jax.precision import at_precision

MAX_MODELS = 64
_Method = typing.TypeVar("_Method", bound=Callable[..., Any])


def shared(method: _Method) -> _Method:
    """Makes a method one object for all equal models, so that `jax.jit(model.method)` is too."""
    return typing.cast(_Method, _Shared(method))


class _Shared:
    """The descriptor of `shared`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self._function
        if not _may_keep(model):
            return types.MethodType(self._function, model)
        return kept(model, self._function, lambda: types.MethodType(self._function, model))


def program(
    function: Callable[..., Any], model: Any, static_argnames: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Compiles `function(model, ...)`, once for all equal models, at their precision of products.

    Args:
        function: a function of a module, whose first argument is the model.
        model: the model, a frozen dataclass.
        static_argnames: names of arguments that are no arrays.

    Returns:
        The compiled function of the other arguments.
    """
    precise = at_precision(function, model.config.lm.matmul_precision)  # its name is the program's
    bound = functools.partial(precise, model)
    if not _may_keep(model):
        return bound
    name = (function, "program")
    return kept(model, name, lambda: jax.jit(bound, static_argnames=static_argnames))


def kept(model: Any, name: Any, make: Callable[[], Any]) -> Any:
    """Returns what was made under this name for an equal model, or makes it.

    Args:
        model: a model that may be kept alive.
        name: anything hashable.
        make: makes it.
    """
    values = _values_of(model)
    if name not in values:
        values[name] = make()
    return values[name]


@functools.lru_cache(maxsize=MAX_MODELS)
def _values_of(model: Any) -> dict[Any, Any]:
    """What was made for a model, by name."""
    del model
    return {}


def forget() -> None:
    """Frees all that was compiled for models."""
    _values_of.cache_clear()


def _may_keep(model: Any) -> bool:
    """Whether a model may outlive its user.

    One that holds functions, an optimizer for one, may not inside of a transformation: they may
    hold arrays of it.
    """
    others = (field.name for field in dataclasses.fields(model) if field.name != "config")
    is_plain = all(
        isinstance(getattr(model, name), bool | int | float | str | None) for name in others
    )
    return is_plain or not is_traced(jax.lax.iota(jnp.int32, 1))
