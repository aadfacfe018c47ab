"""In which precision products are taken, also where they are traced later, in a backward pass."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

_Function = TypeVar("_Function", bound=Callable[..., Any])


def current_precision() -> str | None:
    """What `jax.default_matmul_precision` was set to around this call; None: to nothing."""
    precision: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return precision


def at_precision(function: _Function, precision: str | None) -> _Function:
    """A function whose products have a precision, whoever calls it and whenever it is traced.

    Rules of `jax.custom_vjp` are traced where a derivative is taken, outside of the `with` block
    around the function; they are the reason for this.

    Args:
        function: any function.
        precision: as `jax.default_matmul_precision` takes it.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def at_model_precision(method: _Function) -> _Function:
    """A method of a memory model whose products have the precision of its language model."""

    @functools.wraps(method)
    def call(model: Any, *args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision(model.config.lm.matmul_precision):
            return method(model, *args, **kwargs)

    return call  # type: ignore[return-value]
