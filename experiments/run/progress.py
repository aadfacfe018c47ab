"""Progress lines of a run and its TensorBoard events, and these read back."""

import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from experiments.program.console import log
from experiments.program.formatting import minutes
from experiments.run.events import read_events
from gradmem_jax.storage.writing import require_no_link

Points = list[tuple[int, float]]


class ScalarWriter:
    """Appends scalars to an event file of its own, each on the disk when `write` returns.

    The SummaryWriter of tensorboardX writes in a thread; a full disk ends that thread unheard, and
    the program then waits for it for ever.
    """

    def __init__(self, workdir: pathlib.Path) -> None:
        """Opens a new event file of the run."""
        folder = workdir / "tensorboard"
        require_no_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ending = f".{secrets.token_hex(8)}"  # no file that is there is opened
        self._file = EventsWriter(str(folder / "events"), ending)

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


def read_scalars(workdir: pathlib.Path) -> dict[str, Points]:
    """Returns (step, value) by name of all scalars of a run, later writings of a step last.

    Raises:
        ValueError: an event file is damaged.
    """
    points: dict[str, dict[int, float]] = {}
    for path in sorted((workdir / "tensorboard").glob("events.out.tfevents.*")):
        for event in read_events(path):
            for value in event.summary.value:
                points.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: sorted(steps.items()) for tag, steps in points.items()}


class Progress:
    """Prints a line every window and keeps TensorBoard events; a context manager."""

    def __init__(
        self,
        workdir: pathlib.Path,
        num_steps: int,
        batch_size: int,
        first_step: int,
        write: bool = True,
    ):
        """Opens the events, which only a process with `write` has."""
        self._writer = ScalarWriter(workdir) if write else None
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._last = (time.monotonic(), first_step)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._writer is not None:
            self._writer.close()

    def restart_clock(self, step: int) -> None:
        """Leaves out of the speed what happened since the last line, such as an evaluation."""
        self._last = (time.monotonic(), step)

    def leave_out(self, seconds: float) -> None:
        """Leaves so many seconds since the last line out of the speed, of a compile for example."""
        self._last = (self._last[0] + seconds, self._last[1])

    def train(self, step: int, task: str, metrics: Mapping[str, float]) -> None:
        """Reports the mean metrics of the training steps since the last line."""
        now = time.monotonic()
        seconds = (now - self._last[0]) / max(step - self._last[1], 1)
        self._last = (now, step)
        left = minutes((self._num_steps - step) * seconds)
        log.info(
            "step %d/%d %s | loss %.4f | exact match %.3f | tokens right %.3f | write loss %.3f | "
            "%.0f ms/step, %.0f samples/s | at most %s left",
            step,
            self._num_steps,
            task,
            metrics["loss"],
            metrics["exact_match"],
            metrics["token_accuracy"],
            metrics["write_loss"],
            seconds * 1e3,
            self._batch_size / seconds,
            left,
        )
        self.scalars("train", step, {**metrics, "seconds_per_step": seconds})

    def scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Writes TensorBoard scalars."""
        if self._writer is not None:
            self._writer.write(step, {f"{group}/{name}": value for name, value in values.items()})
