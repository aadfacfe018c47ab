"""CPU cores as devices of JAX: each takes its part of a batch, which is faster than sharing it."""

import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax

from gradmem_jax.checks import AUTOMATIC, require_count
from gradmem_jax.parallel.sharding import AXES, MeshConfig


def count_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_devices(cpu_devices: int, batch_size: int, mesh: MeshConfig | None = None) -> int:
    """Returns how many devices to make of this machine's cores.

    Args:
        cpu_devices: how many; `AUTOMATIC` is as many cores as `mesh` and the batch divide over.
        batch_size: B.
        mesh: how the devices are to be arranged; by default along the batch.
    """
    if require_count("cpu_devices", cpu_devices) != AUTOMATIC:
        return cpu_devices
    mesh = mesh or MeshConfig()
    sizes = [getattr(mesh, name) for name in AXES]
    fixed = math.prod(size for size in sizes if size != AUTOMATIC)
    if AUTOMATIC not in sizes:
        return min(fixed, count_cores())
    for number in range(count_cores(), 0, -1):
        shards = fixed if mesh.tensor == AUTOMATIC else number // mesh.tensor
        if number % fixed == 0 and batch_size % shards == 0:
            return number
    return 1


def make_devices(
    cpu_devices: int, batch_size: int, mesh: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Makes devices of cores, unless the environment says how many, before any use of a device.

    Of several processes each has one, for there may be several on a machine.

    Args:
        cpu_devices: see `count_devices`.
        batch_size: see `count_devices`.
        mesh: fields of a `MeshConfig`.
    """
    number = count_devices(cpu_devices, batch_size, MeshConfig(**mesh))
    is_said = "JAX_NUM_CPU_DEVICES" in os.environ
    is_said |= "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_said and not jax.distributed.is_initialized():
        jax.config.update("jax_num_cpu_devices", number)
