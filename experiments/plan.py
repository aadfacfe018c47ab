r"""Says of training steps whether they fit a machine and what they cost, before one is paid for.

XLA compiles the real steps for TPUs and NVIDIA GPUs that are not here; nothing runs. Steps are
those of a run's configuration, for every length of its contexts, or of the catalogue in
experiments/planning/catalogue.py. Where one does not fit, settings are sought that do. Examples:

  python -m experiments.plan --config=experiments/configs/kv_paper.py:n32_k2 \
      --topology=v5e:2x2
  python -m experiments.plan --work='gpt2_*' --topology=h200:1,a100-80:8 \
      --batch_sizes=16,64
"""

from collections.abc import Iterable, Iterator, Sequence

from absl import flags
from ml_collections import config_flags

from experiments.planning import machines, plans
from experiments.planning.catalogue import find_works
from experiments.planning.machines import MACHINES, Topology
from experiments.planning.step_plan import StepPlan
from experiments.planning.work import Work, works_of_run
from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.run.build import build
from gradmem_jax.checks import require

with startup.known_fields():
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The run whose steps are planned.")
_WORK = flags.DEFINE_string(
    "work", None, "Steps of the catalogue, patterns such as kv_*,llama_*, in place of --config."
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
    f"Settings to plan with, as in remat=full,dtype=bfloat16, of {', '.join(plans.FIELDS)}.",
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
    def find(batch_size: int | None) -> Iterable[Work]:
        if _WORK.value is not None:
            return find_works(_WORK.value, len(topology.devices), batch_size)
        return works_of_run(build(_CONFIG.value.lock()), batch_size)

    sizes = startup.integers("batch_sizes", _BATCH_SIZES.value) if _BATCH_SIZES.value else []
    return plans.works_by_batch_size(find, sizes)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    require(
        (_WORK.value is None) != (_CONFIG.value is None),
        "give --config or --work, the run or the steps of the catalogue to plan; one of the two.",
    )
    out = None if _OUT.value is None else files.output_file("out", _OUT.value)
    machines.set_up()
    found: list[StepPlan] = []
    # All of them first: a compiler that is not installed is told before the others take minutes.
    for topology in [machines.open_topology(name) for name in _TOPOLOGY.value]:
        works = (
            plans.changed(work, _LM.value, _NUM_MICRO_BATCHES.value) for work in _works(topology)
        )
        for plan in plans.make_plans(works, topology, _REMEDIES.value):
            found.append(plan)
            if out is not None:
                plans.write_plans(out, found)
    log.info("on each device\n%s", plans.table(found))


if __name__ == "__main__":
    startup.run(main)
