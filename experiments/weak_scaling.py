"""Weak scaling on simulated devices: more devices, each with as many samples.

Prints a JSON line for each number of devices: time of a training step, the bytes that each device
sends, read from the compiled program, and how a pod of real chips would fare, on paper. The
devices share the cores of this machine, so a step of n devices has n times the work on the same
cores. `efficiency` is therefore the CPU time per sample of one device over that of n: what
splitting costs in work, not what n real devices gain, whose links are not simulated. Example:

  python -m experiments.weak_scaling --axis=fsdp --devices=1,2,4,8
"""

import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.program import files, startup
from experiments.run.build import build_model, build_optimizer_config, build_task, first_params
from experiments.run.stage import FIELDS
from experiments.speed.communication import sent_bytes
from experiments.speed.projection import Chip, project, step_flops
from gradmem_jax.checks import require, require_choice
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.parallel import sharding
from gradmem_jax.training.optimizer import make_optimizer
from gradmem_jax.training.step import init_state, jit_train_step

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(pathlib.Path(__file__).parent / "configs" / "kv_paper.py") + ":n8_k2",
    "Model and task, as for experiments.train.",
)
_DEVICES = flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of simulated devices.")
_AXIS = flags.DEFINE_string("axis", "data", "Mesh axis that grows: data, fsdp or tensor.")
_BATCH = flags.DEFINE_integer("samples_per_device", 8, "Samples of each device.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 3, "Timed steps, of which the median counts.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "File of the JSON lines too.")
_CHIPS = flags.DEFINE_integer("chips", 256, "Chips of the pod of the projection.", lower_bound=1)
_FLOPS = flags.DEFINE_float("chip_flops", 197e12, "Peak FLOP/s of a chip (TPU v5e, bfloat16).")
_UTILIZATION = flags.DEFINE_float("utilization", 0.3, "Share of the peak that a step reaches.")
_BANDWIDTH = flags.DEFINE_float(
    "link_bandwidth", 90e9, "Bytes/s that a chip sends along a ring (v5e: two links of 45 GB/s)."
)


def measure(config: ConfigDict, axis: str, devices: int, per_device: int, steps: int) -> Any:
    """Times a training step of `devices` devices along a mesh axis; returns a JSON-able dict."""
    sizes = {"data": 1} | {axis: devices}
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), jax.devices()[:devices])
    model, task = build_model(config), build_task(config)
    optimizer = make_optimizer(build_optimizer_config(config))
    batch_size = per_device * devices
    batch = next(make_iterator(task.source("train"), batch_size, task=task, num_threads=0))
    rows, state = sharding.batch_sharding(mesh), init_state(first_params(config, model), optimizer)
    state = sharding.place(state, sharding.shardings(state, mesh))
    on_devices = sharding.place({name: batch[name] for name in FIELDS}, rows)
    step = jit_train_step(model, optimizer, state, mesh, config.num_micro_batches)
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


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    out = _OUT.value and files.output_file("out", _OUT.value)
    require_choice("axis", _AXIS.value, sharding.AXES)
    require(
        all(number.isdecimal() and int(number) for number in _DEVICES.value),
        f"--devices={','.join(_DEVICES.value)} must be whole numbers from 1 on, separated by "
        "commas.",
    )
    numbers = sorted(int(number) for number in _DEVICES.value)
    jax.config.update("jax_num_cpu_devices", numbers[-1])
    results = []
    for number in numbers:
        row = measure(_CONFIG.value, _AXIS.value, number, _BATCH.value, _STEPS.value)
        print(json.dumps(row), flush=True)
        results.append(row)
    print(table(results))
    chip = Chip(_FLOPS.value, _UTILIZATION.value, _BANDWIDTH.value)
    last = results[-1]
    print(json.dumps(project(last["param_bytes"], last["flops_per_device"], _CHIPS.value, chip)))
    if out:
        out.write_text("".join(json.dumps(row) + "\n" for row in results))


if __name__ == "__main__":
    startup.run(main)
