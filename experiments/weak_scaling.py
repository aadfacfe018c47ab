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
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_flags

from experiments.program import files, startup
from experiments.program.console import say
from experiments.run.build import build
from experiments.speed.projection import Chip, project
from experiments.speed.weak_steps import measure, table
from gradmem_jax.checks import require, require_choice
from gradmem_jax.parallel import sharding

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
    plan, results = build(_CONFIG.value), []
    for number in numbers:
        row = measure(plan, _AXIS.value, number, _BATCH.value, _STEPS.value)
        say(json.dumps(row))
        results.append(row)
        if out:
            out.write_text("".join(json.dumps(row) + "\n" for row in results))
    say(table(results))
    chip = Chip(_FLOPS.value, _UTILIZATION.value, _BANDWIDTH.value)
    last = results[-1]
    say(json.dumps(project(last["param_bytes"], last["flops_per_device"], _CHIPS.value, chip)))


if __name__ == "__main__":
    startup.run(main)
