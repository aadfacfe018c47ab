"""A run in progress: its steps, evaluations and checkpoints, in an order that loses nothing."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.program import formatting, hosts
from experiments.program.console import log
from experiments.run.compiled_steps import CompiledSteps
from experiments.run.devices import Devices
from experiments.run.evaluation import evaluate_params
from experiments.run.initial_state import sample_seed, start_state
from experiments.run.log_window import LogWindow, TrainedStep
from experiments.run.nonfinite import NonFiniteError, all_finite
from experiments.run.plan import RunPlan
from experiments.run.progress import Progress
from experiments.run.stage import RunningStage
from experiments.run.stopping import Stopped, Stopping
from gradmem_jax.checks import require
from gradmem_jax.parallel import sharding
from gradmem_jax.storage import checkpoint
from gradmem_jax.training.optimizer import learning_rate_schedule
from gradmem_jax.training.step import TrainState


@dataclasses.dataclass
class HostState:
    """What a checkpoint has beside the state on the devices.

    Attributes:
        stage: number of the curriculum's stage.
        iterator: state of the iterator over its batches; None is the beginning.
        sample_seed: see `initial_state.sample_seed`.
        seconds: how long the run has been trained.
        compile_seconds: how long of that it has waited for training steps to be compiled.
        exact_match: of the last evaluation; None before the first one.
        evaluation_due: whether the step is to be evaluated before the next one.
        evaluated_step: step of the last evaluation; -1 before the first one.
        skipped_steps: how many steps and evaluations were not finite.
        skipped_evaluations: how many of them were evaluations.
        window: metrics of the steps since the last progress line.
    """

    stage: int = 0
    iterator: Any = None
    sample_seed: int | None = None
    seconds: float = 0.0
    compile_seconds: float = 0.0
    exact_match: float | None = None
    evaluation_due: bool = False
    evaluated_step: int = -1
    skipped_steps: int = 0
    skipped_evaluations: int = 0
    window: list[Mapping[str, float]] = dataclasses.field(default_factory=list)

    @classmethod
    def restore(cls, saved: Mapping[str, Any]) -> "HostState":
        """Reads what `dataclasses.asdict` gave; fields that it has not have their defaults."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in saved.items() if name in names})


class TrainingRun:
    """A run from its last checkpoint on.

    Attributes:
        step: steps done.
        skipped_steps: how many of them, and of the evaluations, were not finite.
    """

    def __init__(
        self,
        plan: RunPlan,
        workdir: pathlib.Path,
        devices: Devices,
        stopping: Stopping,
        checkpoints: ocp.CheckpointManager,
        shapes: TrainState,
        check_place: Callable[[], None],
    ):
        """Restores the last checkpoint, or makes the state of step 0.

        Args:
            plan: of the run.
            workdir: its folder.
            devices: what `find_devices` returned.
            stopping: says when a signal has come.
            checkpoints: from `checkpoint.open_checkpoints`.
            shapes: from `state_shapes`.
            check_place: raises CheckpointError if `workdir` is not the folder it was.
        """
        self._started = time.monotonic()
        self._plan, self._workdir, self._devices = plan, workdir, devices
        self._stopping, self._checkpoints = stopping, checkpoints
        self._check_place = check_place
        template = sharding.placed_shapes(shapes, sharding.shardings(shapes, devices.mesh))
        restored = checkpoint.restore_latest(checkpoints, template)
        if restored is None:
            self._state, seed = _first_state(plan, devices)
            host = HostState(sample_seed=seed)
        else:
            self._state, host = restored[0], HostState.restore(restored[1])
            log.info("going on from step %d", int(self._state.step))
        self._host = host
        self.step = self._saved_step = int(self._state.step)
        host.evaluation_due |= self._done and host.evaluated_step != self.step
        self._steps: CompiledSteps | None = None
        self._stage: RunningStage | None = None
        self._window = LogWindow(workdir, plan.skip_nonfinite, host.skipped_steps, host.window)
        self._skipped_evaluations = host.skipped_evaluations

    @property
    def skipped_steps(self) -> int:
        """How many steps and evaluations were not finite."""
        return self._window.skipped

    @property
    def evaluation_due(self) -> bool:
        """Whether the step is to be evaluated before the next one."""
        return self._host.evaluation_due

    @property
    def seconds(self) -> float:
        """How long the run has been trained, all its starts together."""
        return self._host.seconds + time.monotonic() - self._started

    @property
    def compile_seconds(self) -> float:
        """How long all starts together have waited for training steps to be compiled."""
        return self._host.compile_seconds + (self._steps.seconds if self._steps else 0.0)

    def train(self, steps: CompiledSteps, progress: Progress) -> None:
        """Trains to the last step, or to an evaluation that reaches `stop_at_exact_match`.

        Args:
            steps: compiles the steps.
            progress: gets what people are told.

        Raises:
            ValueError: the run was stopped by more steps that were not finite than may be.
            Stopped: by a signal; what was trained is saved in a checkpoint.
            NonFiniteError: training diverged; what was trained is saved in a checkpoint.
            CheckpointError: a checkpoint could not be written.
        """
        params, host = self._state.params, self._host
        self._steps = steps
        if not host.evaluation_due and self._done:
            return
        require(
            self.skipped_steps <= self._plan.skip_nonfinite,
            f"{self._workdir} stopped at step {self.step}, as {self.skipped_steps} steps or "
            f"evaluations were not finite, more than skip_nonfinite={self._plan.skip_nonfinite}. "
            f"{self._remedy()}",
        )
        size = sum(x.size for x in jax.tree.leaves(params))
        log.info("%d parameters on %s; compiling", size, " and ".join(self._devices.names))
        for axis in sharding.undivided(params, self._devices.mesh):
            log.info("every device has the %s", axis)

        def start_stage(index: int, iterator: Any, **options: Any) -> RunningStage:
            started = time.monotonic()
            place = {"iterator_state": iterator, "sample_seed": host.sample_seed}
            stage = RunningStage(self._plan, index, self._devices, steps, **place, **options)
            progress.compiled(time.monotonic() - started)
            return stage

        self._stopping.check()
        try:
            if host.evaluation_due:
                self._evaluate(progress)
            while not self._done:
                stage = self._stage
                if stage is None:
                    check = self._stopping.check_alone
                    stage = self._stage = start_stage(host.stage, host.iterator, check=check)
                self._train_steps(stage, steps, progress)
                if self._is_told:
                    means = self._tell(stage, progress)
                    is_last = stage.index == len(self._plan.stages) - 1
                    if not is_last and means["exact_match"] >= self._plan.next_stage_at:
                        self._stage = start_stage(stage.index + 1, None)
                else:
                    self._window.read()
                self._check_place()
                checkpoint.check_for_errors(self._checkpoints)
                host.evaluation_due = self._is_evaluated
                if host.evaluation_due:
                    self._evaluate(progress)
                elif self._is_saved:
                    started = time.monotonic()
                    self._save(None)
                    progress.saved(time.monotonic() - started)
        except Stopped:
            try:
                self._window.read()
            except NonFiniteError as error:
                raise self._saved(error) from error
            if self.step != self._saved_step:
                self._save(None)
            raise
        except NonFiniteError as error:
            raise self._saved(error) from error

    @property
    def _is_told(self) -> bool:
        """Whether there is a progress line after the steps done."""
        return self.step == self._plan.num_steps or self.step % self._plan.log_every == 0

    @property
    def _is_evaluated(self) -> bool:
        """Whether the run is evaluated, and saved, after the steps done."""
        return self.step == self._plan.num_steps or self.step % self._plan.evaluate_every == 0

    @property
    def _is_saved(self) -> bool:
        """Whether the run is saved after the steps done, evaluated or not."""
        return self._plan.save_every > 0 and self.step % self._plan.save_every == 0

    def _saved(self, error: NonFiniteError) -> NonFiniteError:
        """Saves the state, if it is finite, before a run stops with an error; says so in it."""
        if not all_finite(self._state.params):
            return NonFiniteError(f"{error}. Parameters are infinite too, and were not saved.")
        self._host.evaluation_due |= self.step != self._host.evaluated_step and self._is_evaluated
        self._save(None)
        return NonFiniteError(f"{error}. The state of step {self.step} is saved. {self._remedy()}")

    def _remedy(self) -> str:
        return (
            f"Start from it in another --workdir, with --config.init_from={self._workdir}, "
            "--config.init_checkpoint=latest and a lower optimizer.learning_rate or "
            "model.write_learning_rate; or go on here with a --config.skip_nonfinite above "
            f"{self.skipped_steps}."
        )

    @property
    def _done(self) -> bool:
        wanted, exact_match = self._plan.stop_at_exact_match, self._host.exact_match
        reached = wanted is not None and exact_match is not None and exact_match >= wanted
        return reached or self.step >= self._plan.num_steps

    def _train_steps(self, stage: RunningStage, steps: CompiledSteps, progress: Progress) -> None:
        """Trains to the next progress line, evaluation or save."""
        alone = jax.process_count() == 1
        due = False
        while not due:
            if alone or self.step % self._plan.log_every == 0:
                self._stopping.check()
            batch = stage.next_batch()
            compiling = steps.seconds
            self._state, metrics = stage.step(self._state, batch)
            progress.leave_out(steps.seconds - compiling)
            self.step += 1
            self._stopping.to_save = True
            self._window.add(TrainedStep(self.step, stage.num_write_steps, batch, metrics))
            due = self._is_told or self._is_evaluated or self._is_saved

    def _tell(self, stage: RunningStage, progress: Progress) -> dict[str, float]:
        """Tells a progress line of the steps since the last one, and returns their means."""
        means = self._window.finish()
        means["learning_rate"] = self._learning_rate()
        progress.train(self.step, stage.index, means)
        return means

    def _learning_rate(self) -> float:
        """That of the last step; skipped ones leave the schedule where it is."""
        skipped = self.skipped_steps - self._skipped_evaluations
        updates = max(self.step - 1 - skipped, 0)
        with jax.numpy_dtype_promotion("standard"):  # optax counts on it
            return float(learning_rate_schedule(self._plan.optimizer)(updates))

    def _evaluate(self, progress: Progress) -> None:
        """Evaluates the task itself, with the trained number of WRITE steps, and saves."""
        plan, target = self._plan, self._plan.target
        k = target.model.config.num_write_steps
        started = time.monotonic()
        with self._stopping.interruptible():
            by_k = evaluate_params(
                target.model,
                self._state.params,
                target.task,
                [k],
                num_samples=plan.num_eval_samples,
                batch_size=plan.batch_size,
                mesh=self._devices.mesh,
            )
        results = {name: value for name, value in by_k[k].items() if isinstance(value, float)}
        log.info("step %d, fresh samples: %s", self.step, formatting.describe(results))
        progress.scalars("evaluation", self.step, results)
        self._host.evaluation_due = False
        self._host.evaluated_step = self.step
        if np.isfinite([*results.values()]).all():
            self._host.exact_match = results["exact_match"]
            self._save(results | {"score": plan.score(results)})
        else:
            self._host.exact_match = None
            self._skipped_evaluations += 1
            self._window.count(f"the evaluation of step {self.step} is not finite")
            self._save(None)
        progress.evaluated(time.monotonic() - started)

    def _save(self, metrics: Mapping[str, float] | None) -> None:
        if self._stage is not None:
            self._host.stage = self._stage.index
            self._host.iterator = self._stage.iterator.get_state()
        host = dataclasses.replace(
            self._host,
            seconds=self.seconds,
            compile_seconds=self.compile_seconds,
            skipped_steps=self.skipped_steps,
            skipped_evaluations=self._skipped_evaluations,
            window=self._window.done,
        )
        run = dataclasses.asdict(host)
        self._check_place()
        checkpoint.save(self._checkpoints, self.step, self._state, run, metrics)
        self._saved_step = self.step
        self._stopping.to_save = False


def _first_state(plan: RunPlan, devices: Devices) -> tuple[TrainState, int | None]:
    """Makes the state of step 0 on the CPU, which may have room that no device has; splits it.

    Returns:
        The state, and the seed of its samples.
    """
    with jax.default_device(hosts.cpu()):
        state = start_state(plan)
    seed = sample_seed(plan, state.params)
    return sharding.place(state, sharding.shardings(state, devices.mesh)), seed
