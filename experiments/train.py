"""Trains a way of writing memory on a task and evaluates it with the context removed.

Run again with the same --workdir, a stopped run goes on from its last checkpoint. SIGTERM and
Ctrl-C let it finish the steps in flight, save, and exit with status 75. Example:

  python -m experiments.train --workdir=runs/kv_quick
  python -m experiments.train --config=experiments/configs/kv_paper.py:n8_k2 --workdir=runs/n8_k2

--config.mesh arranges several devices, --distributed joins several processes: docs/devices.md.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import heap, hosts, locks, program, reporting
from experiments.build import (
    LOWER_IS_BETTER,
    Stage,
    build_optimizer_config,
    build_stages,
)
from experiments.evaluation import evaluate_params
from experiments.final_report import final_report
from experiments.log_window import LogWindow, TrainedStep
from experiments.nonfinite import NonFiniteError
from experiments.reporting import log
from experiments.run_start import check_workdir, save_tokenizer, start_state
from experiments.stage import CompiledSteps, Devices, RunningStage, find_devices
from experiments.stopping import EXIT_STOPPED, STORAGE_ERRORS, Stopped, Stopping, catch_signals
from gradmem_jax import checkpoint, sharding
from gradmem_jax.config import require
from gradmem_jax.memory.interface import MemoryModel, Params
from gradmem_jax.optimizer import make_optimizer
from gradmem_jax.training import TrainState, init_state

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(pathlib.Path(__file__).parent / "configs" / "kv_quick.py"),
    "What to train: a file of experiments/configs, perhaps with an argument behind a colon. Any "
    "field can be set, as in --config.seed=1; experiments/configs/default.py explains them.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run: checkpoints, TensorBoard, metrics.json.", required=True
)
flags.adopt_module_key_flags(hosts)


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, or goes on training, and evaluates the best checkpoint.

    Args:
        config: see experiments/configs/default.py.
        workdir: the run's folder.

    Returns:
        What is written to metrics.json.

    Raises:
        ValueError: the configuration is wrong, before anything is compiled.
        NonFiniteError: training diverged.
        Stopped: by a signal; a checkpoint is saved.
        CheckpointError: a checkpoint could not be written or read.
    """
    stages = build_stages(config)
    devices = find_devices(config)
    if hosts.is_first():
        reporting.output_folder("workdir", workdir)
    lock = workdir / "train.lock"
    alone = jax.process_count() == 1
    hold = locks.hold(lock) if hosts.is_first() else contextlib.nullcontext()
    with hold as held, catch_signals(None if alone else hosts.largest) as stopping:
        require(
            bool(hosts.from_first(held is not None)),
            f"{workdir} is being trained by {locks.holder(lock)}; stop that first, or choose "
            "another --workdir.",
        )
        return _train(config, workdir, stages, devices, stopping)


def _train(
    config: ConfigDict,
    workdir: pathlib.Path,
    stages: list[Stage],
    devices: Devices,
    stopping: Stopping,
) -> dict[str, Any]:
    """Trains in a workdir that nobody else works on."""
    started = time.monotonic()
    target = stages[-1]
    check_workdir(workdir, config)
    if hosts.is_first():
        save_tokenizer(workdir, target.task)
    optimizer = make_optimizer(build_optimizer_config(config))
    shapes = _state_shapes(config, target.model, optimizer)
    with (
        checkpoint.open_checkpoints(workdir / "checkpoints") as checkpoints,
        CompiledSteps(config, devices, shapes) as steps,
    ):
        host: dict[str, Any] = {"stage": 0, "iterator": None, "seconds": 0.0, "reached": False}
        host |= {"evaluation_due": False, "skipped_steps": 0, "window": []}
        template = sharding.placed_shapes(shapes, sharding.shardings(shapes, devices.mesh))
        restored = checkpoint.restore_latest(checkpoints, template)
        if restored is None:
            state = _state_on(devices, lambda: start_state(config, target.model, optimizer))
        else:
            state, host = restored[0], host | restored[1]
            log.info("going on from step %d", int(state.step))
        step = saved_step = int(state.step)
        size = sum(x.size for x in jax.tree.leaves(state.params))
        log.info("%d parameters on %s; compiling", size, " and ".join(devices.names))
        for axis in sharding.undivided(state.params, devices.mesh):
            log.info("every device has the %s", axis)
        trained_before = host["seconds"]
        start_stage = lambda index, iterator=None: RunningStage(
            config, stages, index, devices, steps, iterator
        )
        running = start_stage(host["stage"], host["iterator"])
        reached, due = host["reached"], host["evaluation_due"]
        window = LogWindow(workdir, config.skip_nonfinite, host["skipped_steps"], host["window"])

        def save(metrics: Mapping[str, float] | None) -> None:
            host = {
                "stage": running.index,
                "iterator": running.iterator.get_state(),
                "seconds": trained_before + time.monotonic() - started,
                "reached": reached,
                "evaluation_due": due,
                "skipped_steps": window.skipped,
                "window": window.done,
            }
            checkpoint.save(checkpoints, step, state, host, metrics)

        with reporting.Progress(
            workdir, config.num_steps, config.batch_size, step, write=hosts.is_first()
        ) as progress:
            try:
                while due or (step < config.num_steps and not reached):
                    if not due:
                        if jax.process_count() == 1 or step % config.log_every == 0:
                            stopping.check()
                        batch = running.next_batch()
                        compiling = steps.seconds
                        state, metrics = running.step(state, batch)
                        progress.leave_out(steps.seconds - compiling)
                        step += 1
                        window.add(TrainedStep(step, running.num_write_steps, batch, metrics))
                        if step % config.log_every and step < config.num_steps:
                            continue
                        means = window.finish()
                        progress.train(step, running.name, means)
                        threshold = config.curriculum.exact_match
                        if running.index < len(stages) - 1 and means["exact_match"] >= threshold:
                            running = start_stage(running.index + 1)
                        checkpoint.check_for_errors(checkpoints)
                        due = step % config.evaluate_every == 0 or step == config.num_steps
                    if due:
                        with stopping.interruptible():
                            results = evaluate(config, target, state.params, devices)
                        log.info("step %d, fresh samples: %s", step, reporting.describe(results))
                        progress.scalars("evaluation", step, results)
                        wanted = config.stop_at_exact_match
                        reached = wanted is not None and results["exact_match"] >= wanted
                        due = False
                        save(results | score(config, results))
                        saved_step = step
                    progress.restart_clock(step)
            except Stopped:
                window.read()
                if step != saved_step:
                    save(None)
                raise
    with stopping.interruptible():
        summary = final_report(config, target, workdir, devices)
    summary["skipped_steps"] = window.skipped
    summary |= {"steps": step, "compile_seconds": steps.seconds, "devices": devices.names}
    summary["seconds"] = trained_before + time.monotonic() - started
    if hosts.is_first():
        reporting.write_json(workdir / "metrics.json", summary)
    log.info("%d steps, %s in all", step, reporting.minutes(summary["seconds"]))
    return summary


def _state_shapes(config: ConfigDict, model: MemoryModel, optimizer: Any) -> TrainState:
    """The shapes and dtypes of a run's state, for which nothing is drawn or read."""
    make = lambda: init_state(model.init(jax.random.key(0)), optimizer, config.frozen)
    return jax.eval_shape(make)


def _state_on(devices: Devices, make: Callable[[], TrainState]) -> TrainState:
    """Makes a state on the CPU, which may have room that no device has, and splits it."""
    with jax.default_device(hosts.cpu()):
        state = make()
    return sharding.place(state, sharding.shardings(state, devices.mesh))


def evaluate(
    config: ConfigDict, target: Stage, params: Params, devices: Devices
) -> dict[str, float]:
    """Evaluates the task itself, with the trained number of WRITE steps."""
    k = target.model.config.num_write_steps
    results = evaluate_params(
        target.model,
        devices.gather(params),
        target.task,
        [k],
        num_samples=config.num_eval_samples,
        batch_size=config.batch_size,
        batch_sharding=devices.batch,
    )[k]
    return {name: value for name, value in results.items() if isinstance(value, float)}


def score(config: ConfigDict, results: Mapping[str, float]) -> dict[str, float]:
    """What the best checkpoint has most of: config.best_metric, or its negative if it is a loss."""
    value = results[config.best_metric]
    return {"score": -value if config.best_metric in LOWER_IS_BETTER else value}


def main(_: Sequence[str]) -> int:
    """Runs the program."""
    heap.share_arenas()
    reporting.set_up_logging()
    hosts.connect()
    if not hosts.is_first():
        log.setLevel("WARNING")
    workdir = pathlib.Path(_WORKDIR.value)
    try:
        train(_CONFIG.value, workdir)
    except Stopped as signal:
        log.info("stopped by %s; the same command goes on from here", signal)
        return EXIT_STOPPED
    except (checkpoint.CheckpointError, NonFiniteError) as error:
        log.error("%s", error)
        return 1
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        log.error(
            "cannot read or write: %s. Make space for %s, or mend its disk or permissions; the "
            "same command then goes on from the last checkpoint.",
            *(error, workdir),
        )
        return 1
    return 0


if __name__ == "__main__":
    program.run(main)
