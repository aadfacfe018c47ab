"""Progress lines of a run and its TensorBoard events, and these read back."""

import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from experiments.program.console import log
from experiments.program.formatting import brief, minutes, three_digits
from experiments.program.memory_in_use import memory_in_use
from experiments.run.events import drop_later, read_events
from experiments.run.plan import RunPlan
from experiments.run.time_left import TimeLeft
from gradmem_jax.storage.writing import require_no_link

Points = list[tuple[int, float]]


class ScalarWriter:
    """Appends scalars to an event file of its own, each on the disk when `write` returns.

    The SummaryWriter of tensorboardX writes in a thread; a full disk ends that thread unheard, and
    the program then waits for it for ever.
    """

    def __init__(
        self, workdir: pathlib.Path, first_step: int, evaluation_due: bool = False
    ) -> None:
        """Opens a new event file of the run; earlier ones lose what will be told again.

        Args:
            workdir: folder of the run.
            first_step: steps that were done before.
            evaluation_due: whether the last of them is still to be evaluated.
        """
        folder = workdir / "tensorboard"
        require_no_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for path in _event_files(workdir):
            try:
                drop_later(path, first_step, "evaluation" if evaluation_due else None)
            except ValueError as error:
                log.warning("%s Until then steps may stand in the events twice.", error)
        ending = f".{secrets.token_hex(8)}"  # no file that is there is opened
        self._file = EventsWriter(str(folder / "events"), ending)
        if first_step:  # a TensorBoard that is open forgets them too
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(
                Event(wall_time=time.time(), step=first_step + 1, session_log=start)
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name; raises OSError if the disk takes no more."""
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _event_files(workdir: pathlib.Path) -> list[pathlib.Path]:
    return sorted((workdir / "tensorboard").glob("events.out.tfevents.*"))


def read_scalars(workdir: pathlib.Path) -> dict[str, Points]:
    """Returns (step, value) by name of all scalars of a run, later writings of a step last.

    Raises:
        ValueError: an event file is damaged.
    """
    points: dict[str, dict[int, float]] = {}
    for path in _event_files(workdir):
        for event in read_events(path):
            for value in event.summary.value:
                points.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: sorted(steps.items()) for tag, steps in points.items()}


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
    """Prints a line every window and keeps TensorBoard events; a context manager."""

    def __init__(
        self,
        workdir: pathlib.Path,
        plan: RunPlan,
        first_step: int,
        write: bool = True,
        evaluation_due: bool = False,
    ):
        """Opens the events, which only a process with `write` has; see `ScalarWriter`."""
        self._writer = ScalarWriter(workdir, first_step, evaluation_due) if write else None
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
        """Writes TensorBoard scalars."""
        if self._writer is not None:
            self._writer.write(step, {f"{group}/{name}": value for name, value in values.items()})
