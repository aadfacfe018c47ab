"""Low-rank adapters (Hu et al., 2021) as a transformation of a language model's parameters."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from gradmem_jax.checks import require
from gradmem_jax.lm.language_model import Dense, kernel_axes
from gradmem_jax.trees import Params


def _kernels(
    lm_params: Params, targets: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], Any, tuple[int, ...], int, int]]:
    """Path, kernel, leading axes (the layers, if they are stacked), inputs, outputs of each."""
    for path, kernel in flatten_dict(lm_params).items():
        if path[-1] == "kernel" and path[-2] in targets:
            num_leading, split = kernel_axes(path, kernel.ndim)
            leading, shape = kernel.shape[:num_leading], kernel.shape[num_leading:]
            yield path[:-1], kernel, leading, math.prod(shape[:split]), math.prod(shape[split:])


def init_lora(key: jax.Array, lm_params: Params, rank: int, targets: Sequence[str]) -> Params:
    """Draws adapters that change nothing yet.

    Args:
        key: a JAX random key.
        lm_params: parameters of the language model.
        rank: r.
        targets: names of the modules whose kernels get an adapter.

    Returns:
        Nested dict like `lm_params` with the modules that have an adapter only, each with "a"
        [inputs, r], uniform, and "b" [r, outputs], zero; with stacked layers [L, ...].

    Raises:
        ValueError: no module has one of the names.
    """
    adapters: dict[tuple[str, ...], jax.Array] = {}
    for i, (path, kernel, leading, inputs, outputs) in enumerate(_kernels(lm_params, targets)):
        bound = inputs**-0.5
        adapters[*path, "a"] = jax.random.uniform(
            jax.random.fold_in(key, i), (*leading, inputs, rank), kernel.dtype, -bound, bound
        )
        adapters[*path, "b"] = jnp.zeros((*leading, rank, outputs), kernel.dtype)
    require(
        adapters != {},
        f"no module of the language model is named one of {tuple(targets)}; its kernels belong to "
        f"{sorted({p[-2] for p in flatten_dict(lm_params) if p[-1] == 'kernel'})}.",
    )
    return unflatten_dict(adapters)


def check_adapters(lm: nn.Module, lm_params: Params, adapters: Params) -> None:
    """Raises ValueError if a module that has an adapter would not add it.

    Args:
        lm: the language model.
        lm_params: its parameters.
        adapters: what `init_lora` made for them.
    """
    adding = set()

    def record(function: Any, args: Any, options: Any, context: Any) -> Any:
        if isinstance(context.module, Dense):
            adding.add(context.module.path)
        return function(*args, **options)

    def run() -> Any:
        return lm.apply({"params": lm_params}, jnp.zeros((1, 1), jnp.int32), method="everything")

    with nn.intercept_methods(record):
        jax.eval_shape(run)
    others = sorted({path[:-1] for path in flatten_dict(adapters)} - adding)
    require(
        not others,
        f"{', '.join('/'.join(path) for path in others[:3])} would leave out an adapter of WRITE: "
        "make it by gradmem_jax.lm.dense, or take its name out of write_lora_targets.",
    )


def drop_inputs(adapters: Params, key: jax.Array, share: float) -> Params:
    """Leaves out some inputs of every adapter, and scales the others so that the mean stays.

    All tokens of a step miss the same inputs, where in Hu et al. each misses its own.

    Args:
        adapters: what `init_lora` made.
        key: a JAX random key.
        share: probability of an input to be left out, in [0, 1).

    Returns:
        Adapters like `adapters`.
    """
    flat = flatten_dict(adapters)
    dropped = dict(flat)
    for i, (path, a) in enumerate(flat.items()):
        if path[-1] == "a":
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - share, (*a.shape[:-1], 1))
            dropped[path] = jnp.where(kept, a / (1 - share), 0)
    return unflatten_dict(dropped)


def attach_lora(lm_params: Params, adapters: Params, scale: float) -> Params:
    """Puts adapters beside their kernels, where `language_model.Dense` adds `scale * x @ a @ b`.

    No kernel is copied, and the gradient of an adapter never has the size of its kernel.

    Args:
        lm_params: parameters of the language model; they stay as they are.
        adapters: what `init_lora` made for them.
        scale: alpha / r.

    Returns:
        Parameters like `lm_params`, with "lora_a" and "lora_b" in the modules that have an adapter.
    """
    attached = flatten_dict(lm_params)
    for (*path, name), leaf in flatten_dict(adapters).items():
        attached[*path, f"lora_{name}"] = scale * leaf if name == "b" else leaf
    return unflatten_dict(attached)


def merge_lora(lm_params: Params, adapters: Params, scale: float) -> Params:
    """Adds `scale * a @ b` to a copy of every kernel that has an adapter.

    Args:
        lm_params: parameters of the language model; they stay as they are.
        adapters: what `init_lora` made for them.
        scale: alpha / r.

    Returns:
        Parameters like `lm_params`.
    """
    merged, flat = flatten_dict(lm_params), flatten_dict(adapters)
    for path in {path[:-1] for path in flat}:
        kernel = merged[*path, "kernel"]
        change = scale * (flat[*path, "a"] @ flat[*path, "b"])
        merged[*path, "kernel"] = kernel + change.reshape(kernel.shape).astype(kernel.dtype)
    return unflatten_dict(merged)
