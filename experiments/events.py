"""What training wrote to TensorBoard, read back."""

import pathlib
import struct
from collections.abc import Iterator

from tensorboardX.proto.event_pb2 import Event

Points = list[tuple[int, float]]


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
