"""What training writes to TensorBoard, and the same read back."""

import pathlib
import struct
import time
from collections.abc import Iterator, Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

Points = list[tuple[int, float]]


class ScalarWriter:
    """Appends scalars to an event file of its own, each on the disk when `write` returns.

    The SummaryWriter of tensorboardX writes in a thread; a full disk ends that thread unheard, and
    the program then waits for it for ever.
    """

    def __init__(self, workdir: pathlib.Path) -> None:
        """Opens a new event file of the run."""
        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))

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
    """Returns (step, value) by name of all scalars of a run, later writings of a step last."""
    points: dict[str, dict[int, float]] = {}
    for path in sorted((workdir / "tensorboard").glob("events.out.tfevents.*")):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            for value in event.summary.value:
                points.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: sorted(steps.items()) for tag, steps in points.items()}


def _records(data: bytes) -> Iterator[bytes]:
    """Records of an event file: length, its checksum, content, its checksum."""
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        if place + 16 + length > len(data):
            return  # still being written
        yield data[place + 12 : place + 12 + length]
        place += 16 + length
