"""Training steps on more and more simulated devices, each with as many samples."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax

from experiments.run.initial_state import draw_params
from experiments.run.plan import RunPlan
from experiments.run.stage import FIELDS
from experiments.speed.communication import sent_bytes
from experiments.speed.projection import step_flops
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.parallel import sharding
from gradmem_jax.training.optimizer import make_optimizer
from gradmem_jax.training.step import init_state, jit_train_step


def measure(plan: RunPlan, axis: str, devices: int, per_device: int, steps: int) -> dict[str, Any]:
    """Times a training step of some devices along a mesh axis.

    Args:
        plan: of a run; its model and task are measured.
        axis: of the mesh.
        devices: how many.
        per_device: samples of each.
        steps: how many are timed.

    Returns:
        Medians of the times, bytes sent and held, and FLOPs, JSON-able.
    """
    sizes = {"data": 1} | {axis: devices}
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), jax.devices()[:devices])
    model, task, _ = plan.target
    optimizer = make_optimizer(plan.optimizer)
    batch_size = per_device * devices
    batch = next(make_iterator(task.source("train"), batch_size, task=task, num_threads=0))
    rows, state = sharding.batch_sharding(mesh), init_state(draw_params(plan), optimizer)
    state = sharding.place(state, sharding.shardings(state, mesh))
    on_devices = sharding.place({name: batch[name] for name in FIELDS}, rows)
    step = jit_train_step(model, optimizer, state, mesh, plan.num_micro_batches)
    compiled = step.lower(state, on_devices).compile()
    state, _ = jax.block_until_ready(compiled(state, on_devices))
    times, cpu_times = [], []
    for _ in range(steps):
        started, cpu_started = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, on_devices)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - started)
        cpu_times.append(time.process_time() - cpu_started)
    leaves = jax.tree.leaves(state)
    weights = sum(x.size for x in jax.tree.leaves(state.params["lm"]) if x.ndim > 1)
    return {
        "axis": axis,
        "devices": devices,
        "batch_size": batch_size,
        "step_seconds": statistics.median(times),
        "step_cpu_seconds": statistics.median(cpu_times),
        "loss": float(metrics["loss"]),
        "sent_bytes": sent_bytes(compiled.as_text() or ""),
        "param_bytes": sum(x.nbytes for x in jax.tree.leaves(state.params)),
        "state_bytes": sum(x.nbytes for x in leaves),
        "state_bytes_per_device": sum(x.addressable_shards[0].data.nbytes for x in leaves),
        "flops_per_device": step_flops(
            weights,
            per_device,
            batch["context_ids"].shape[-1],
            batch["query_ids"].size // batch_size,
            model.config.num_write_steps,
        ),
    }


def table(results: Sequence[Any]) -> str:
    """Formats the results of one axis, the smallest number of devices first."""
    base = results[0]["step_cpu_seconds"] / results[0]["batch_size"]
    lines = ["devices   step       CPU time   efficiency   each sends   each holds of the state"]
    for row in results:
        efficiency = base / (row["step_cpu_seconds"] / row["batch_size"])
        sent = sum(row["sent_bytes"].values())
        seconds = (row["step_seconds"], row["step_cpu_seconds"])
        lines.append(
            f"{row['devices']:7d}   {seconds[0]:6.2f} s   {seconds[1]:6.2f} s   "
            f"{efficiency:10.0%}   {sent / 2**20:6.2f} MiB   "
            f"{row['state_bytes_per_device'] / 2**20:13.2f} MiB"
        )
    return "\n".join(lines)
