"""A whole run, from its lock to its metrics.json."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from experiments.program import console, files, formatting, hosts, locks
from experiments.program.console import log
from experiments.run.compiled_steps import CompiledSteps
from experiments.run.devices import Devices, find_devices
from experiments.run.final_report import final_report, show_answers
from experiments.run.initial_state import state_shapes
from experiments.run.log_to import check_writers
from experiments.run.nonfinite import NonFiniteError
from experiments.run.plan import RunPlan
from experiments.run.progress import Progress
from experiments.run.start_record import record_start
from experiments.run.stopping import Stopping, catch_signals
from experiments.run.training_run import TrainingRun
from experiments.run.workdir import check_workdir, save_tokenizer
from gradmem_jax.checks import require
from gradmem_jax.storage import checkpoint
from gradmem_jax.storage.damage import CheckpointError
from gradmem_jax.storage.steps import orbax_path


def train(plan: RunPlan, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, or goes on training, and evaluates the best checkpoint.

    Args:
        plan: of the run.
        workdir: its folder.

    Returns:
        What is written to metrics.json.

    Raises:
        ValueError: the plan fits neither the devices nor the workdir, before anything is compiled.
        NonFiniteError: training diverged.
        Stopped: by a signal; what was trained is saved in a checkpoint.
        CheckpointError: a checkpoint could not be written or read.
    """
    orbax_path(workdir / "checkpoints")
    check_writers(plan.log_to)
    devices = find_devices(plan)
    if hosts.is_first():
        files.output_folder("workdir", workdir)
    lock = workdir / "train.lock"
    alone = jax.process_count() == 1
    hold = locks.hold(lock) if hosts.is_first() else contextlib.nullcontext()
    with hold as held, catch_signals(None if alone else hosts.largest) as stopping:
        require(
            bool(hosts.from_first(held is not None)),
            f"{workdir} is being trained by {locks.holder(lock)}; stop that first, or choose "
            "another --workdir.",
        )

        def check_place() -> None:
            if held is not None and not locks.is_held(held, lock):
                raise CheckpointError(
                    f"{workdir} is not the folder any more that training began in: it was moved, "
                    "deleted or replaced, or its train.lock was. Put it back; the same command "
                    "then goes on from its last checkpoint."
                )

        keep = console.log_file(workdir / "train.log")
        with keep if hosts.is_first() else contextlib.nullcontext():
            return _train(plan, workdir, devices, stopping, check_place)


def _train(
    plan: RunPlan,
    workdir: pathlib.Path,
    devices: Devices,
    stopping: Stopping,
    check_place: Callable[[], None],
) -> dict[str, Any]:
    """Trains in a workdir that nobody else works on."""
    check_workdir(workdir, plan)
    if hosts.is_first():
        save_tokenizer(workdir, plan.target.task)
    shapes = state_shapes(plan.target.model, plan.optimizer, plan.frozen)
    with (
        checkpoint.open_checkpoints(workdir / "checkpoints") as checkpoints,
        CompiledSteps(plan, devices, shapes) as steps,
    ):
        run = TrainingRun(plan, workdir, devices, stopping, checkpoints, shapes, check_place)
        first_step = run.step
        if hosts.is_first():
            record_start(workdir, first_step, devices.names)
        write, due = hosts.is_first(), run.evaluation_due
        with Progress(workdir, plan, first_step, write, due) as progress:
            run.train(steps, progress)
        if checkpoints.best_step() is None:
            raise NonFiniteError(
                f"no evaluation in {workdir} was finite, so none of its checkpoints is the best."
            )
    check_place()
    with stopping.interruptible():
        summary, params = final_report(plan, workdir, devices)
    summary |= {"skipped_steps": run.skipped_steps, "steps": run.step, "devices": devices.names}
    times = {"seconds": run.seconds, "compile_seconds": run.compile_seconds}
    path = workdir / "metrics.json"
    if run.step == first_step and path.exists():  # those of the training still hold
        times |= {k: v for k, v in files.read_json(path).items() if k in times}
    summary |= times
    check_place()
    if hosts.is_first():
        files.write_results(path, summary)
    with stopping.interruptible():
        show_answers(plan, workdir, params)
    log.info("%d steps, %s in all", run.step, formatting.minutes(summary["seconds"]))
    return summary
