"""Says of training steps whether they fit a machine and what they cost, before one is paid for.

XLA compiles the real steps for TPUs and NVIDIA GPUs that are not here; nothing runs. Steps are
those of a run's configuration, for every length of its contexts, or of the catalogue in
experiments/planning/catalogue.py. Where one does not fit, settings are sought that do. Examples:

  python -m experiments.plan --config=experiments/configs/kv_paper.py:n32_k2 --topology=v5e:2x2
  python -m experiments.plan --work='gpt2_*' --topology=h200:1,a100-80:8 --batch_sizes=16,64
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import config_flags

from experiments.planning import machines, remedies
from experiments.planning.catalogue import find_works
from experiments.planning.machines import GIB, MACHINES, Topology
from experiments.planning.step_plan import StepPlan, plan_step
from experiments.planning.work import Work, works_of_run
from experiments.program import console, files, formatting, startup
from experiments.program.console import log
from experiments.run.build import build
from gradmem_jax.checks import require

_FIELDS = ("remat", "dtype", "gather", "attention")
with startup.known_fields():
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The run whose steps are planned.")
_WORK = flags.DEFINE_string(
    "work", None, "Steps of the catalogue, a pattern, in place of --config."
)
_TOPOLOGY = flags.DEFINE_list(
    "topology",
    None,
    f"Machines, as in v5e:4x4 (chips) or h200:8; kinds are {', '.join(MACHINES)} (required).",
    required=True,
)
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", None, "Batch sizes of all devices together; default: the run's own."
)
_LM = flags.DEFINE_list(
    "lm",
    [],
    f"Settings to plan with, as in remat=full,dtype=bfloat16, of {', '.join(_FIELDS)}.",
)
_NUM_MICRO_BATCHES = flags.DEFINE_integer(
    "num_micro_batches",
    None,
    "Parts of each device's batch; default: the run's own, -1 as few as there is room for.",
)
_REMEDIES = flags.DEFINE_bool(
    "remedies", True, "Seek settings that fit where a step does not; each takes a compile."
)
_OUT = flags.DEFINE_string("out", None, "Path of the results without suffix: .json and .md.")


def _works(topology: Topology) -> Iterator[Work]:
    sizes = startup.integers("batch_sizes", _BATCH_SIZES.value) if _BATCH_SIZES.value else [None]
    for size in sizes:
        if _WORK.value is not None:
            yield from find_works(_WORK.value, len(topology.devices), size)
        else:
            yield from works_of_run(build(_CONFIG.value.lock()), size)


def changed(work: Work) -> Work:
    """A step with the settings that flags ask for."""
    settings = dict(text.partition("=")[::2] for text in _LM.value)
    unknown = sorted(settings.keys() - {*_FIELDS})
    require(
        not unknown and all(settings.values()),
        f"--lm={','.join(_LM.value)} must be of name=value, with names of {', '.join(_FIELDS)}.",
    )
    work = work.with_lm(**settings)
    if _NUM_MICRO_BATCHES.value is not None:
        work = dataclasses.replace(work, num_micro_batches=_NUM_MICRO_BATCHES.value)
    return work


def _gib(size: float | None) -> float | None:
    return None if size is None else size / GIB


def table(plans: Sequence[StepPlan]) -> str:
    """Formats plans, a line each."""
    head = ["step", "on", "B", "parts", "remat", "dtype", "gather", "fits", "GiB of", "parameters"]
    head += ["optimizer", "gathered", "temporary", "TFLOP", "GB moved", "ms", "bound by"]
    head += ["GB sent", "compile s"]
    rows = [
        [
            p.work,
            p.topology,
            p.batch_size,
            p.settings["num_micro_batches"],
            p.settings["remat"],
            p.settings["dtype"],
            p.settings["gather"],
            "yes" if p.fits else "NO",
            f"{p.total / GIB:.2f} of {p.available / GIB:.1f}",
            *map(_gib, (p.parameters, p.optimizer, p.gathered, p.temporary)),
            None if p.flops is None else p.flops / 1e12,
            None if p.moved is None else p.moved / 1e9,
            None if p.seconds is None else p.seconds * 1e3,
            p.bound_by,
            sum(p.collectives.values()) / 1e9,
            round(p.compile_seconds),
        ]
        for p in plans
    ]
    return formatting.markdown(head, rows)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    require(
        (_WORK.value is None) != (_CONFIG.value is None),
        "give --config or --work, the run or the steps of the catalogue to plan; one of the two.",
    )
    out = None if _OUT.value is None else files.output_file("out", _OUT.value)
    machines.set_up()
    plans: list[StepPlan] = []
    for topology in map(machines.open_topology, _TOPOLOGY.value):
        for work in map(changed, _works(topology)):
            plan = plan_step(work, topology)
            plans.append(plan)
            log.info("%s on %s: %.2f GiB", plan.work, plan.topology, plan.total / GIB)
            if not plan.fits and _REMEDIES.value:
                remedy = remedies.find_remedy(work, topology, plan)
                plans += [] if remedy is None else [remedy]
                said = "nothing tried fits" if remedy is None else remedies.describe(remedy)
                log.info("%s does not fit; what does: %s", plan.work, said)
            if out is not None:
                write_plans(out, plans)
    log.info("on each device\n%s", table(plans))


def write_plans(out: pathlib.Path, plans: Sequence[StepPlan]) -> None:
    """Writes plans as JSON and as a table."""
    files.write_json(files.with_ending(out, ".json"), [dataclasses.asdict(p) for p in plans])
    files.with_ending(out, ".md").write_text(table(plans) + "\n")


if __name__ == "__main__":
    startup.run(main)
