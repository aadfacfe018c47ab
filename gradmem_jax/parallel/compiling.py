"""Options of XLA that only some of its versions know."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.trees import PyTree

NO_SPLITTING = ("xla_disable_hlo_passes", "cpu-parallel-task-assigner")
REDUCE_IN_LOOPS = (
    "xla_cpu_experimental_ynn_fusion_type",
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",  # and not short sums, for which it calls a library too
)
FEWER_COPIES = ("xla_cpu_copy_insertion_use_region_analysis", True)


def platform_of(tree: PyTree) -> str:
    """The platform of the devices that arrays lie on, or new ones come to if none of them lies."""
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    (device, *_) = (leaves[0] if leaves else jnp.zeros(())).devices()
    return device.platform


def compiler_options(*options: tuple[str, Any]) -> dict[str, Any] | None:
    """Makes the `compiler_options` of `jax.jit`, of the options that XLA knows here.

    XLA takes them for what is compiled by itself only, not inside of another program.

    Args:
        *options: names and values.
    """
    return {name: value for name, value in options if _is_known(name, value)} or None


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
