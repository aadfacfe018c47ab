"""Computes again, sample by sample, the step of a run that was not finite.

A run keeps the batch of such a step in its folder. The parameters are those of a checkpoint, by
default of the newest that is not after the step. Example:

  python -m experiments.rerun --workdir=runs/n8 --batch=runs/n8/nonfinite_step_120.npz
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments.program import console, startup
from experiments.program.console import log
from experiments.run.build import build_model
from experiments.run.nonfinite import checkpoint_before, load_batch, sample_results
from experiments.run.saved_run import run_config, run_params
from gradmem_jax.training.step import step_params

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run (required).", required=True)
_BATCH = flags.DEFINE_string("batch", None, "Its nonfinite_step_*.npz (required).", required=True)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "best, latest, or a step; default: the newest not after the batch's step."
)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    workdir = pathlib.Path(_WORKDIR.value)
    config = run_config(workdir)
    batch = load_batch(_BATCH.value)
    nearest = lambda: checkpoint_before(workdir / "checkpoints", int(batch["step"]))
    step, params = run_params(workdir, _CHECKPOINT.value or nearest())
    k = int(batch["num_write_steps"])
    log.info("batch of step %d, K = %d; parameters of step %d", batch["step"], k, step)
    model = build_model(config, num_write_steps=k)
    params = step_params(model, params, int(batch["step"]) - 1, config.seed)
    for result in sample_results(model, params, batch, config.frozen):
        finite = np.isfinite([result.loss, result.gradient_norm]).all()
        note = "" if finite else " | not finite"
        log.info("sample %d | loss %.4f | gradient norm %.4f%s", *result, note)


if __name__ == "__main__":
    startup.run(main)
