r"""Trains the runs of a sweep one after the other, each as a process of experiments.train.

Run again with the same flags, a stopped sweep goes on: finished runs are skipped, others resume.
A sweep can be split over processes and machines that share --root: chains of runs that start from
each other stay together. Example, the first of two workers:

  python -m experiments.sweep --sweep=experiments/sweeps/kv_small.py \
      --root=runs/kv_small --index=0 --count=2
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence

import jax
from absl import flags

from experiments.program import console, files, startup
from experiments.program.console import log, say
from experiments.run.stopping import handle_signals
from experiments.sweeps import runner
from experiments.sweeps.sweep_file import load_runs, select
from gradmem_jax.foreign_text import one_line

_SWEEP = flags.DEFINE_string(
    "sweep", None, "Python file whose get_runs() lists the runs (required).", required=True
)
_ROOT = flags.DEFINE_string("root", None, "Folder of the runs' folders (required).", required=True)
_ONLY = flags.DEFINE_string("only", "", "Regular expression; only runs whose name has it.")
_INDEX = flags.DEFINE_integer("index", 0, "Number of this worker, from 0.")
_COUNT = flags.DEFINE_integer("count", 1, "Workers that share the sweep.", lower_bound=1)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands and start nothing.")


def main(_: Sequence[str]) -> int:
    """Runs the program."""
    console.set_up_logging()
    jax.config.update("jax_platforms", "cpu")  # of this process: accelerators are for the children
    runs = select(load_runs(_SWEEP.value), _INDEX.value, _COUNT.value, _ONLY.value)
    root = pathlib.Path(_ROOT.value)
    if _DRY_RUN.value:
        for run in runs:
            done = runner.finished(root / run.name)
            words = runner.command(run, root)
            say(f"# {one_line(run.name)} is finished" if done else one_line(shlex.join(words)))
        return 0
    files.output_folder("root", root)
    handle_signals(_stop)
    failed = runner.run_all(runs, root)
    if failed:
        log.error("failed: %s", ", ".join(failed))
    return 1 if failed else 0


def _stop(number: int, _: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    startup.run(main)
