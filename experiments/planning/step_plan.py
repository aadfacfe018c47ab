"""The plan of a training step: it is compiled for a machine, and what the compiler says is read."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from experiments.planning.flops import count_flops, count_read_again
from experiments.planning.hlo import measure
from experiments.planning.machines import Topology
from experiments.planning.work import Work
from experiments.run import fitting
from experiments.run.initial_state import state_shapes
from gradmem_jax.checks import AUTOMATIC, require
from gradmem_jax.parallel import sharding
from gradmem_jax.training.optimizer import make_optimizer
from gradmem_jax.training.step import jit_train_step
from gradmem_jax.trees import PyTree, path_name


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What a step takes on each device of a machine.

    Attributes:
        work: name of the step.
        topology: name of the machine.
        devices: how many there are.
        batch_size: B, of all devices.
        settings: what it was compiled with: parts of the batch, remat, dtype, precision.
        fits: whether a device has room for it.
        available: bytes that a program can have on a device.
        parameters: bytes of the parameters that a device keeps.
        optimizer: bytes of the optimizer's state that it keeps.
        gathered: bytes of the parameters that others keep and it holds during a step; they are
            part of what is temporary.
        temporary: bytes that are there during a step only; of a step without room on a TPU, all.
        total: bytes of all of them.
        flops: operations of matrix products.
        moved: bytes read from main memory and written to it.
        seconds: the time that the slower of both takes at the device's peaks, the least there is.
        bound_by: which it is: "compute" or "memory".
        collectives: bytes sent, by kind.
        compile_seconds: how long compiling took here.
    """

    work: str
    topology: str
    devices: int
    batch_size: int
    settings: dict[str, Any]
    fits: bool
    available: int
    parameters: int
    optimizer: int
    gathered: int
    temporary: int
    total: int
    flops: float | None
    moved: float | None
    seconds: float | None
    bound_by: str
    collectives: dict[str, float]
    compile_seconds: float


def plan_step(work: Work, topology: Topology) -> StepPlan:
    """Compiles a step for a machine.

    Raises:
        ValueError: the mesh or the batch does not divide over its devices.
    """
    mesh = sharding.make_mesh(work.mesh, topology.devices)
    shards = sharding.num_batch_shards(mesh)
    require(
        work.batch_size % shards == 0,
        f"{work.name}: batch size {work.batch_size} does not divide over the {shards} devices of "
        f"{topology.name} along the batch; choose another batch size, or a mesh with tensor.",
    )
    state = state_shapes(work.model, work.optimizer, work.frozen)
    flops, read_again = 0.0, 0.0

    def lower(parts: int, remat: str) -> Any:
        nonlocal flops, read_again
        model = fitting.with_lm(work.model, remat=remat)
        step = jit_train_step(
            model, make_optimizer(work.optimizer), state, mesh, parts, work.frozen
        )
        traced = step.trace(state, dict(work.batch))
        flops = count_flops(traced.jaxpr, machine.platform)
        read_again = count_read_again(traced.jaxpr, machine.platform)
        return traced.lower()

    started = time.monotonic()
    lm = work.model.config.lm
    machine = topology.machine
    by_layers = getattr(lm, "gather", "step") == "layer"
    own = _bytes(state.params, mesh)
    whole = _bytes(state.params, mesh, whole=True, but=sharding.LAYERS if by_layers else None)
    known: dict[str, Any] = {
        "work": work.name,
        "topology": topology.name,
        "devices": len(topology.devices),
        "batch_size": work.batch_size,
        "settings": {
            "remat": lm.remat,
            "dtype": lm.dtype,
            "matmul_precision": lm.matmul_precision,
            "gather": getattr(lm, "gather", "step"),
        },
        "available": machine.usable,
        "parameters": own,
        "optimizer": _bytes(state.optimizer_state, mesh),
        "gathered": whole - own,
    }
    given, remats = work.num_micro_batches, fitting.remats(lm.remat)
    counts = fitting.divisors(work.batch_size // shards) if given == AUTOMATIC else [given]
    try:
        fitted = fitting.compile_to_fit(lower, counts, remats, machine.usable)
    except jax.errors.JaxRuntimeError as error:
        used = fitting.bytes_without_room(error)
        if used is None:
            raise
        known["settings"] |= {"num_micro_batches": counts[-1], "remat": remats[-1]}
        return StepPlan(
            **known,
            flops=flops,
            fits=False,
            temporary=used - own - known["optimizer"],
            total=used,
            moved=None,
            seconds=None,
            bound_by="",
            collectives={},
            compile_seconds=time.monotonic() - started,
        )
    compiled = fitted.step
    known["settings"] |= {"num_micro_batches": fitted.num_parts, "remat": fitted.remat}
    traffic, total = measure(compiled.as_text()), fitting.total_bytes(compiled)
    moved = traffic.memory + read_again
    times = {
        "compute": flops / machine.peak(lm.dtype, lm.matmul_precision),
        "memory": moved / machine.bandwidth,
    }
    bound_by = max(times, key=lambda name: times[name])
    return StepPlan(
        **known,
        flops=flops,
        fits=total <= machine.usable,
        temporary=compiled.memory_analysis().temp_size_in_bytes,
        total=total,
        moved=moved,
        seconds=times[bound_by],
        bound_by=bound_by,
        collectives=traffic.collectives,
        compile_seconds=time.monotonic() - started,
    )


def _bytes(tree: PyTree, mesh: Any, whole: bool = False, but: str | None = None) -> int:
    """Bytes of arrays on each device.

    Args:
        tree: the arrays.
        mesh: the devices.
        whole: whether they are gathered over fsdp.
        but: a regular expression of the paths of those that are not.
    """

    def size(path: Any, x: Any, place: Any) -> int:
        left = but is not None and re.search(but, path_name(path))
        is_gathered = whole and "fsdp" in tuple(place.spec) and not left
        parts = mesh.shape["fsdp"] if is_gathered else 1
        return math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize * parts

    sizes = jax.tree.map_with_path(size, tree, sharding.shardings(tree, mesh))
    return sum(jax.tree.leaves(sizes))
