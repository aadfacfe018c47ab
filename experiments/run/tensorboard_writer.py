"""Scalars of a run as TensorBoard events, and these read back."""

import pathlib
import secrets
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from experiments.program.console import log
from experiments.run.events import drop_later, read_events
from experiments.run.scalar_writer import RunToWrite
from gradmem_jax.storage.writing import require_no_link

Points = list[tuple[int, float]]


class TensorBoardWriter:
    """Appends scalars to an event file of its own, each on the disk when `write` returns.

    The SummaryWriter of tensorboardX writes in a thread; a full disk ends that thread unheard, and
    the program then waits for it for ever.
    """

    def __init__(self, run: RunToWrite) -> None:
        """Opens a new event file of the run; earlier ones lose what will be told again."""
        folder = run.workdir / "tensorboard"
        require_no_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for path in _event_files(run.workdir):
            try:
                drop_later(path, run.first_step, "evaluation" if run.evaluation_due else None)
            except ValueError as error:
                log.warning("%s Until then steps may stand in the events twice.", error)
        ending = f".{secrets.token_hex(8)}"  # no file that is there is opened
        self._file = EventsWriter(str(folder / "events"), ending)
        if run.first_step:  # a TensorBoard that is open forgets them too
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(
                Event(wall_time=time.time(), step=run.first_step + 1, session_log=start)
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
