"""Progress lines of a run, and its scalars to whatever keeps them."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from experiments.program.console import log
from experiments.program.formatting import brief, minutes, three_digits
from experiments.program.memory_in_use import memory_in_use
from experiments.run.log_to import open_writers
from experiments.run.plan import RunPlan
from experiments.run.scalar_writer import RunToWrite
from experiments.run.time_left import TimeLeft


def _rates_and_norms(metrics: Mapping[str, float]) -> str:
    """Learning rate and norm of the outer gradient, learned alpha and norms by step of WRITE."""
    texts = {
        name: three_digits(metrics[field])
        for name, field in (
            ("rate", "learning_rate"),
            ("gradient", "gradient_norm"),
            ("alpha", "write_learning_rate"),
        )
        if field in metrics
    }
    norms = [x for name, x in metrics.items() if name.startswith("write_gradient_norm_")]
    if norms:
        texts["write gradients"] = " ".join(map(three_digits, norms))
    return ", ".join(f"{name} {text}" for name, text in texts.items())


class Progress:
    """Prints a line every window and keeps scalars where `log_to` says; a context manager."""

    def __init__(
        self,
        workdir: pathlib.Path,
        plan: RunPlan,
        first_step: int,
        write: bool = True,
        evaluation_due: bool = False,
    ):
        """Opens the writers of scalars, which only a process with `write` has.

        Args:
            workdir: folder of the run.
            plan: of the run.
            first_step: steps that were done before.
            write: whether this process writes.
            evaluation_due: whether the last of them is still to be evaluated.
        """
        run = RunToWrite(workdir, plan.fields, first_step, evaluation_due)
        self._writer = open_writers(plan.log_to, run) if write else None
        self._plan, self._time_left = plan, TimeLeft(plan)
        self._last = (time.monotonic(), first_step)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._writer is not None:
            self._writer.close()

    def evaluated(self, seconds: float) -> None:
        """Leaves an evaluation with its save out of the speed; those to come are in the rest."""
        self._time_left.evaluations.append(seconds)
        self.leave_out(seconds)

    def saved(self, seconds: float) -> None:
        """Leaves a save without an evaluation out of the speed; those to come are in the rest."""
        self._time_left.saves.append(seconds)
        self.leave_out(seconds)

    def compiled(self, seconds: float) -> None:
        """Leaves the start of a stage out of the speed; those to come are in the rest."""
        self._time_left.compiles.append(seconds)
        self.leave_out(seconds)

    def leave_out(self, seconds: float) -> None:
        """Leaves so many seconds since the last line out of the speed, of a compile for example."""
        self._last = (self._last[0] + seconds, self._last[1])

    def train(self, step: int, stage: int, metrics: Mapping[str, float]) -> None:
        """Reports the mean metrics of the training steps of a stage since the last line."""
        now = time.monotonic()
        seconds = (now - self._last[0]) / max(step - self._last[1], 1)
        self._last = (now, step)
        memory = memory_in_use()
        log.info(
            "step %d/%d %s | loss %.4f | exact match %.3f | token accuracy %.3f | write loss %.3f "
            "| %s | %s | %s/step, %s samples/s | %s %s left",
            step,
            self._plan.num_steps,
            self._plan.stages[stage].name,
            metrics["loss"],
            metrics["exact_match"],
            metrics["token_accuracy"],
            metrics["write_loss"],
            _rates_and_norms(metrics),
            ", ".join(f"{name.replace('_gib', '')} {x:.2f} GiB" for name, x in memory.items()),
            brief(seconds),
            three_digits(self._plan.batch_size / seconds),
            "about" if self._plan.stop_at_exact_match is None else "at most about",
            minutes(self._time_left(step, seconds, stage)),
        )
        self.scalars("train", step, {**metrics, **memory, "seconds_per_step": seconds})

    def scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of a group, "train" or "evaluation"."""
        if self._writer is not None:
            self._writer.write(step, {f"{group}/{name}": value for name, value in values.items()})
