r"""Computes again, sample by sample, the step of a run that was not finite.

A run keeps the batch of such a step in its folder, and saves its state when it stops at it. The
parameters are those of a checkpoint, by default of the one nearest to the step. Example:

  python -m experiments.rerun --workdir=runs/n8 \
      --batch=runs/n8/nonfinite_step_120.npz
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments.program import console, startup
from experiments.program.console import log
from experiments.run.nonfinite import check_ids, load_batch, nearest_checkpoint, sample_results
from experiments.run.saved_run import SavedRun
from gradmem_jax.training.step import step_params

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run (required).", required=True)
_BATCH = flags.DEFINE_string("batch", None, "Its nonfinite_step_*.npz (required).", required=True)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "best, latest, or a step; default: the nearest to the batch's step."
)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    run = SavedRun(pathlib.Path(_WORKDIR.value))
    plan = run.plan
    batch = load_batch(_BATCH.value)
    number, k = int(batch["step"]), int(batch["num_write_steps"])
    checkpoint = _CHECKPOINT.value or nearest_checkpoint(run.folder / "checkpoints", number)
    step, params = run.params(checkpoint)
    log.info("batch of step %d, K = %d; parameters of step %d", number, k, step)
    check_ids(batch, plan.target.task.vocab_size)
    model = plan.model_with(num_write_steps=k)
    model.check_params(params)
    params = step_params(model, params, number - 1, plan.seed)
    for result in sample_results(model, params, batch, plan.frozen):
        finite = np.isfinite([result.loss, result.gradient_norm]).all()
        note = "" if finite else " | not finite"
        log.info("sample %d | loss %.4f | gradient norm %.4f%s", *result, note)


if __name__ == "__main__":
    startup.run(main)
