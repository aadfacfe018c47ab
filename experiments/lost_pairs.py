r"""Says which pairs a memory of KV retrieval loses: by place, and by how alike their keys are.

Every pair of every context is asked for. Two keys are alike if they have a symbol in common in the
same place. Writes lost_pairs.json and .png into the run's folder. Example:

  python -m experiments.lost_pairs --workdir=experiments/models/kv_n64 \
      --num_pairs=32 --num_write_steps=2,5 --out=lost_pairs
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.results import figures
from experiments.results.lost_pairs import count_lost_pairs, table
from experiments.run.saved_run import run_and_results
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
from gradmem_jax.data.task import Task
from gradmem_jax.storage import hub

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of a run of KV retrieval, or the name of an export on a hub (required).",
    required=True,
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "best (by the run's config.best_metric), latest, or a step."
)
_NUM_WRITE_STEPS = flags.DEFINE_list(
    "num_write_steps", None, "Numbers of WRITE steps K; default: as trained."
)
_NUM_PAIRS = flags.DEFINE_integer("num_pairs", None, "N; default: as trained.", lower_bound=1)
_SPLIT = flags.DEFINE_string("split", "", "Split of the data; default: config.final_split.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 500, "Contexts.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Path of the results without suffix; in --workdir.")


def _ask_all(task: Task) -> KVRetrievalConfig:
    """The task in the size that a flag asks for, every pair asked for."""
    if not isinstance(task, KVRetrievalConfig) or task.num_segments > 1:
        raise ValueError(
            f"--workdir={_WORKDIR.value} has other contexts than those of KV retrieval in one "
            "piece: only these have pairs to lose."
        )
    num_pairs = _NUM_PAIRS.value or task.num_pairs
    return dataclasses.replace(task, num_pairs=num_pairs, queries_per_context=num_pairs)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    run, out = run_and_results(_WORKDIR.value, _OUT.value, "lost_pairs")
    plan = run.plan
    model, task = plan.target.model, _ask_all(plan.target.task)
    steps = [model.config.num_write_steps]
    if _NUM_WRITE_STEPS.value is not None:
        steps = startup.integers("num_write_steps", _NUM_WRITE_STEPS.value)
    split = _SPLIT.value or plan.final_split
    step, params = run.params(_CHECKPOINT.value)
    model.check_params(params)
    source = task.source(split, _NUM_SAMPLES.value)
    log.info("N = %d, %s, checkpoint of step %d: compiling", task.num_pairs, split, step)
    rows = count_lost_pairs(model, params, source, steps)
    report = {
        "workdir": hub.pinned(_WORKDIR.value),
        "step": step,
        "split": split,
        "num_pairs": task.num_pairs,
        "num_samples": _NUM_SAMPLES.value,
        "by_num_write_steps": rows,
    }
    files.write_results(out, report)
    log.info("N = %d, checkpoint of step %d\n%s", task.num_pairs, step, table(rows))
    figures.lost_pairs(files.with_ending(out, ".png"), rows)
    log.info("wrote %s and .png", out)


if __name__ == "__main__":
    startup.run(main)
