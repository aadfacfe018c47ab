"""Draws the learning curves of runs, finished or not, from their TensorBoard events.

python -m experiments.curves --root=runs/smol --out=curves.png \
    --scalars=train/read_loss,evaluation/token_accuracy
"""

import pathlib
import re
import struct
from collections.abc import Iterator, Sequence

from absl import app, flags
from tensorboardX.proto.event_pb2 import Event

from experiments import figures, reporting
from experiments.reporting import log
from experiments.runs import ONLY, ROOT
from gradmem_jax.config import require

flags.declare_key_flag(ROOT.name)
flags.declare_key_flag(ONLY.name)
_OUT = flags.DEFINE_string("out", None, "PNG to write.", required=True)
_SCALARS = flags.DEFINE_list(
    "scalars", ["train/read_loss", "evaluation/token_accuracy"], "What to draw, a panel each."
)

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


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    reporting.set_up_logging()
    root = pathlib.Path(ROOT.value)
    folders = sorted(path.parent for path in root.glob("**/tensorboard"))
    names = {str(folder.relative_to(root)): folder for folder in folders}
    runs = {
        name: read_scalars(folder) for name, folder in names.items() if re.search(ONLY.value, name)
    }
    require(bool(runs), f"--root={root} has no run with TensorBoard events that fits --only.")
    known = sorted({tag for scalars in runs.values() for tag in scalars})
    for tag in _SCALARS.value:
        require(tag in known, f"--scalars: {tag!r} is in no run; there are {', '.join(known)}.")
    panels = {
        tag: {name: scalars[tag] for name, scalars in runs.items() if tag in scalars}
        for tag in _SCALARS.value
    }
    figures.learning_curves(pathlib.Path(_OUT.value), panels)
    log.info("drew %s", _OUT.value)


if __name__ == "__main__":
    app.run(main)
