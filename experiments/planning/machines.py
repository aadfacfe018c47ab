"""Accelerators that a step can be planned for: their published facts, and their compilers."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from gradmem_jax.checks import require

GIB = 2**30
TPU_PAGES = "https://docs.cloud.google.com/tpu/docs/"
# XLA tunes kernels by running them, and compiles products by Triton only when tuned so.
_NO_TUNING = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


@dataclasses.dataclass(frozen=True)
class Machine:
    """One kind of accelerator.

    Attributes:
        platform: "tpu" or "cuda".
        memory: bytes of its main memory.
        bandwidth: bytes/s of it.
        flops: FLOP/s of products of bfloat16 at peak, with sums in float32.
        float32_flops: FLOP/s of products of float32 by `lm.matmul_precision`.
        source: where these figures are published.
        gpu: what XLA must know of a GPU.
    """

    platform: str
    memory: int
    bandwidth: float
    flops: float
    float32_flops: Mapping[str, float]
    source: str
    gpu: "GPU | None" = None

    @property
    def usable(self) -> int:
        """Bytes that a program of JAX can have: of GPUs, JAX takes three quarters by default."""
        return self.memory * 3 // 4 if self.gpu else self.memory

    def peak(self, dtype: str, precision: str) -> float:
        """FLOP/s of products of a dtype, those of float32 in a precision."""
        return self.float32_flops[precision] if dtype == "float32" else self.flops


class GPU(NamedTuple):
    """What XLA's compiler asks of an NVIDIA GPU.

    Attributes:
        name: its full name.
        capability: major and minor number of its compute capability.
        cores: streaming multiprocessors.
        lanes: float32 lanes of each.
        clock: GHz.
        shared: bytes of shared memory of each.
        shared_for_block: of these, those that a block may have.
        cache: bytes of second-level cache.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    clock: float
    shared: int
    shared_for_block: int
    cache: int


def _tpu(name: str, gib: int, bandwidth: float, flops: float) -> Machine:
    passes = {"default": 1, "high": 3, "highest": 6}  # of products of bfloat16, by XLA
    float32 = {precision: flops / number for precision, number in passes.items()}
    return Machine("tpu", gib * GIB, bandwidth, flops, float32, f"{TPU_PAGES}{name}")


def _gpu(
    gib: int, bandwidth: float, flops: float, tf32: float, float32: float, source: str, gpu: GPU
) -> Machine:
    by_precision = {"default": tf32, "high": tf32, "highest": float32}
    return Machine("cuda", gib * GIB, bandwidth, flops, by_precision, source, gpu)


_HOPPER = ((9, 0), 132, 128, 1.98, 233472, 232448, 50 * 2**20)
_H100_PAGE = "https://www.nvidia.com/en-us/data-center/h100/"
_H200_PAGE = "https://www.nvidia.com/en-us/data-center/h200/"
_A100_PAGE = "https://www.nvidia.com/en-us/data-center/a100/"
_A100 = GPU("NVIDIA A100-SXM4", (8, 0), 108, 64, 1.41, 167936, 166912, 40 * 2**20)
MACHINES = {
    "v4": _tpu("v4", 32, 1.2e12, 275e12),
    "v5e": _tpu("v5e", 16, 0.819e12, 197e12),
    "v5p": _tpu("v5p", 95, 2.765e12, 459e12),
    "v6e": _tpu("v6e", 32, 1.64e12, 918e12),
    "a100-40": _gpu(40, 1.555e12, 312e12, 156e12, 19.5e12, _A100_PAGE, _A100),
    "a100-80": _gpu(80, 2.039e12, 312e12, 156e12, 19.5e12, _A100_PAGE, _A100),
    "h100": _gpu(80, 3.35e12, 989e12, 494e12, 67e12, _H100_PAGE, GPU("NVIDIA H100 SXM", *_HOPPER)),
    "h200": _gpu(141, 4.8e12, 989e12, 494e12, 67e12, _H200_PAGE, GPU("NVIDIA H200", *_HOPPER)),
}
# A slice of TPUs that has so many chips.
_SLICES = {1: "1x1", 2: "1x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}
_PARTS_OF_A_HOST = {"1x1": (1, 1, 1), "1x2": (1, 2, 1)}  # whole hosts have 2x2 chips


class Topology(NamedTuple):
    """Accelerators of one kind, connected.

    Attributes:
        name: as a flag says it, such as "v5e:4x4".
        machine: of what kind they are.
        devices: what a mesh is made of.
    """

    name: str
    machine: Machine
    devices: list[Any]


def set_up() -> None:
    """Has this process compile for accelerators without looking for one; before JAX is used."""
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs, so several may plan
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_NO_TUNING}".strip()


def open_topology(name: str) -> Topology:
    """Opens a topology such as "v5e:4x4" (chips), "h200:1x1x8" (slices, hosts, GPUs) or "h200:8".

    Raises:
        ValueError: there is no such machine or arrangement, or its compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    require(kind in MACHINES, f"--topology={name}: machines are {', '.join(MACHINES)}.")
    machine = MACHINES[kind]
    require(
        re.fullmatch(r"(\d+x)*\d+", shape) is not None or not shape,
        f"--topology={name} must be like v5e:4x4 or h200:8.",
    )
    plugin, extra = ("jax_cuda12_plugin", "gpu") if machine.gpu else ("libtpu", "tpu")
    require(
        importlib.util.find_spec(plugin) is not None,
        f"--topology={name}: the compiler for {kind} is not installed; "
        f"pip install '.[{extra}]' brings it, on any machine.",
    )
    count = int(shape or 1) if shape.isdecimal() or not shape else 0
    try:
        if machine.gpu:
            topology = topologies.get_topology_desc(
                platform="cuda",
                topology_name="",
                target_config=_target(machine, machine.gpu),
                topology=f"1x1x{count}" if count else shape,
            )
        else:
            layout = _SLICES.get(count, shape)
            chips = _PARTS_OF_A_HOST.get(layout)
            options = {"chips_per_host_bounds": list(chips)} if chips else {}
            topology = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{kind}:{layout}", **options
            )
    except Exception as error:  # plugins raise errors of several kinds
        raise ValueError(
            f"--topology={name} is none that the compiler for {kind} knows: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return Topology(name, machine, list(topology.devices))


def _target(machine: Machine, gpu: GPU) -> str:
    """A GPU as XLA's GpuTargetConfigProto, in text."""
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(machine.bandwidth)}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {machine.memory}
  shared_memory_per_block_optin: {gpu.shared_for_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
