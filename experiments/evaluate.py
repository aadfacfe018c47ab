r"""Evaluates a trained run with the context removed, over numbers of WRITE steps and sizes.

Writes evaluation.json and evaluation.png into the run's folder. Example:

  python -m experiments.evaluate --workdir=runs/kv_quick \
      --num_write_steps=0,1,2,4,8
  python -m experiments.evaluate --workdir=runs/qa1 \
      --max_context_tokens=16,40,0
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from absl import flags

from experiments.program import console, cores, files, startup
from experiments.program.console import log
from experiments.results import figures
from experiments.run.curriculum import describe_task, resize
from experiments.run.evaluation import evaluate_params, one_query, table
from experiments.run.saved_run import run_and_results
from gradmem_jax.checks import AUTOMATIC, DTYPES, Dtype, require, require_choice, require_count
from gradmem_jax.data.records import SPLITS
from gradmem_jax.data.task import Task
from gradmem_jax.parallel import sharding
from gradmem_jax.storage import hub

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run to evaluate, or the name of an export on a hub (required).",
    required=True,
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "best (by the run's config.best_metric), latest, or a step."
)
_NUM_WRITE_STEPS = flags.DEFINE_list(
    "num_write_steps",
    None,
    "Numbers of WRITE steps K; default: 0,1,2,3,4,5,8, or 0,1 if a method writes in one pass.",
)
_NUM_PAIRS = flags.DEFINE_list(
    "num_pairs", None, "Numbers of pairs N, of KV retrieval; default: as trained."
)
_MAX_CONTEXT_TOKENS = flags.DEFINE_list(
    "max_context_tokens", None, "Longest contexts, of a text task, 0 for any; default: as trained."
)
_SPLIT = flags.DEFINE_string("split", "", "Split of the data; default: config.final_split.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 2000, "Contexts, at most.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "Compute dtype; default: as trained.")
_OUT = flags.DEFINE_string("out", None, "Path of the results without suffix; in --workdir.")
_BATCH_SIZE = 64


def _sizes(task_name: str, task: Task) -> dict[str, Task]:
    """The trained task, or the same one in the sizes that a flag asks for, by name."""
    flag_values = {"num_pairs": _NUM_PAIRS.value, "max_context_tokens": _MAX_CONTEXT_TOKENS.value}
    sizes = {name: values for name, values in flag_values.items() if values is not None}
    require(len(sizes) < 2, "--num_pairs and --max_context_tokens exclude each other.")
    tasks = [task]
    for name, values in sizes.items():
        require(hasattr(task, name), f"--{name}: task {task_name!r} has no {name}.")
        tasks = [resize(task, name, size) for size in startup.integers(name, values)]
    return {describe_task(task_name, task): task for task in tasks}


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    run, out = run_and_results(_WORKDIR.value, _OUT.value, "evaluation")
    few = 1 if run.fields["pretrained"] else AUTOMATIC
    wanted = require_count("cpu_devices", run.fields.get("cpu_devices", few))
    cores.make_devices(min(wanted, cores.count_cores()), _BATCH_SIZE)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    plan = run.plan
    step, params = run.params(_CHECKPOINT.value)
    plan.target.model.check_params(params)
    params = sharding.place(params, sharding.shardings(params, mesh))
    model, task = plan.target.model, one_query(plan.target.task)
    if _DTYPE.value:
        dtype = cast(Dtype, _DTYPE.value)
        model = plan.model_with(lm=dataclasses.replace(model.config.lm, dtype=dtype))
    split = _SPLIT.value or plan.final_split
    require_choice("split", split, SPLITS)
    asked = _NUM_WRITE_STEPS.value
    if asked is None:
        asked = list("01" if model.one_pass else "0123458")
    steps = startup.integers("num_write_steps", asked)
    trained = {
        "task": describe_task(plan.task_name, task),
        "num_write_steps": model.config.num_write_steps,
    }
    results: dict[str, Any] = {}
    report = {
        "workdir": hub.pinned(_WORKDIR.value),
        "step": step,
        "split": split,
        "dtype": model.config.lm.dtype,
        "trained": trained,
        "by_task": results,
    }
    for name, size in _sizes(plan.task_name, task).items():
        log.info("%s, %s, checkpoint of step %d: compiling", name, split, step)
        results[name] = evaluate_params(
            model,
            params,
            size,
            steps,
            num_samples=_NUM_SAMPLES.value,
            split=split,
            batch_size=_BATCH_SIZE,
            mesh=mesh,
        )
        log.info("%s, checkpoint of step %d\n%s", name, step, table(results[name]))
        files.write_results(out, report)  # what is there, should a later size be refused
    figures.exact_match_by_steps(files.with_ending(out, ".png"), results, trained)
    log.info("wrote %s and .png", out)


if __name__ == "__main__":
    startup.run(main)
