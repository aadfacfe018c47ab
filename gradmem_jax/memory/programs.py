"""What is compiled for a model, which equal models have in common.

Two models are equal if their fields are: the same numbers and names, the same optimizer object. JAX
keeps what it compiled by the function object, and a bound method is a new one each time. So here is
one function for all equal models. A model of plain values is kept, 64 of them at most; one that
holds functions, which may hold arrays of a transformation in progress, is not kept alive.
"""

import dataclasses
import functools
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

import jax

_MAX_MODELS = 64
_Kept = tuple[Callable[[], Any], dict[Any, Any]]  # the model, and what was made for it
_kept: weakref.WeakKeyDictionary[Any, _Kept] = weakref.WeakKeyDictionary()
_Method = typing.TypeVar("_Method", bound=Callable[..., Any])


def shared(method: _Method) -> _Method:
    """Makes a method one object for all equal models, so that `jax.jit(model.method)` is too.

    Models that hold functions have a new bound method each time, as usual.
    """
    return typing.cast(_Method, _Shared(method))


class _Shared:
    """The descriptor of `shared`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self._function
        if not _is_plain(model):
            return types.MethodType(self._function, model)
        return _bound_method(self._function, model)


@functools.lru_cache(maxsize=4 * _MAX_MODELS)
def _bound_method(function: Callable[..., Any], model: Any) -> types.MethodType:
    return types.MethodType(function, model)


def program(
    function: Callable[..., Any], model: Any, static_argnames: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Compiles `function(model, ...)`, once for all equal models.

    Args:
        function: a function of a module, whose first argument is the model.
        model: the model, a frozen dataclass.
        static_argnames: names of arguments that are no arrays.

    Returns:
        The compiled function of the other arguments.
    """

    def make(model: Callable[[], Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            return function(model(), *args, **options)

        return jax.jit(call, static_argnames=static_argnames)

    return kept(model, function, make)


def kept(model: Any, name: Any, make: Callable[[Callable[[], Any]], Any]) -> Any:
    """Returns what was made under this name for an equal model, or makes it.

    Args:
        model: the model.
        name: anything hashable.
        make: gets a function that returns the model; what it makes must not hold the model itself,
            which would never be freed.
    """
    if _is_plain(model):
        model = _first_equal(model)
    alive, values = _kept.setdefault(model, (weakref.ref(model), {}))
    if name not in values:
        values[name] = make(alive)
    return values[name]


@functools.lru_cache(maxsize=_MAX_MODELS)
def _first_equal(model: Any) -> Any:
    """Keeps a model, and returns it for every equal one."""
    return model


def _is_plain(model: Any) -> bool:
    """Whether a model's fields are its configuration and plain values."""
    others = (field.name for field in dataclasses.fields(model) if field.name != "config")
    return all(isinstance(getattr(model, name), bool | int | float | str | None) for name in others)
