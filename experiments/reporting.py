"""What a run tells people: progress lines, TensorBoard events, JSON files."""

import json
import logging
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from absl import logging as absl_logging

from experiments.events import ScalarWriter
from gradmem_jax.checks import require

log = logging.getLogger("experiments")


class _StandardOutput(logging.StreamHandler):
    """Standard output, which may be closed: a program goes on though nobody reads it any more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Says that a record could not be written, unless its reader has gone."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


def set_up_logging() -> None:
    """Sends our lines to standard output; of libraries only warnings, unless --verbosity is set."""
    handler = _StandardOutput(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)


def integers(name: str, values: Sequence[str]) -> list[int]:
    """Reads a flag that lists whole numbers, in ascending order.

    Raises:
        ValueError: one of them is something else.
    """
    require(
        bool(values) and all(value.strip().isdecimal() for value in values),
        f"--{name}={','.join(values)} must be whole numbers from 0 on, separated by commas.",
    )
    return sorted({int(value) for value in values})


def output_folder(flag: str, folder: str | pathlib.Path) -> pathlib.Path:
    """Makes the folder that a flag names and sees that files can be written there.

    Raises:
        ValueError: they cannot.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(
            f"--{flag}: files cannot be written to {folder.absolute()} ({error.strerror}). Make it "
            f"a folder that is writable and has space, or choose another --{flag}."
        ) from error


def output_file(flag: str, path: str | pathlib.Path) -> pathlib.Path:
    """Makes the folder of a file that a flag names and sees that the file can be written.

    Raises:
        ValueError: it cannot.
    """
    path = pathlib.Path(path)
    output_folder(flag, path.parent)
    writable = not path.exists() or (not path.is_dir() and os.access(path, os.W_OK))
    require(
        writable,
        f"--{flag}={path} is a folder, or a file that is write-protected; choose another one.",
    )
    return path


def with_ending(path: pathlib.Path, ending: str) -> pathlib.Path:
    """Returns the path with an ending such as ".json", in place of one of ".json" that it has.

    Other dots are part of its name: results/alpha0.5 gets results/alpha0.5.json.
    """
    return path.with_name(path.name.removesuffix(".json") + ending)


def to_json(value: Any) -> Any:
    """Turns arrays, tuples and paths into what `json` can write."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a configuration by their whole names, such as "lm.width"."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_group = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return flat


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one step: readers see the old one or the new one, whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(to_json(value), indent=1) + "\n")
    temporary.replace(path)


def mean_metrics(metrics: list[Mapping[str, Any]]) -> dict[str, float]:
    """Averages the metrics of several steps."""
    return {name: float(np.mean([m[name] for m in metrics], dtype=float)) for name in metrics[0]}


def describe(metrics: Mapping[str, float]) -> str:
    """Formats metrics for a log line, whole numbers as they are."""
    text = lambda value: str(value) if isinstance(value, int) else f"{value:.4f}"
    return ", ".join(f"{name.replace('_', ' ')} {text(x)}" for name, x in metrics.items())


def minutes(seconds: float) -> str:
    """Formats a duration: `4:05`, or `2:04:05`."""
    hours, rest = divmod(round(seconds), 3600)
    text = f"{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
    return f"{hours}:{text}" if hours else text


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats a table, right-aligned but for its first column.

    Floating numbers get three digits, None stays empty.
    """

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return "" if value is None else str(value)

    ruler = ["---"] + ["---:"] * (len(head) - 1)
    cells = [[cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *cells))


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
            *(step, self._num_steps, task, metrics["loss"], metrics["exact_match"]),
            *(metrics["token_accuracy"], metrics["write_loss"]),
            *(seconds * 1e3, self._batch_size / seconds, left),
        )
        self.scalars("train", step, {**metrics, "seconds_per_step": seconds})

    def scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Writes TensorBoard scalars."""
        if self._writer is not None:
            self._writer.write(step, {f"{group}/{name}": value for name, value in values.items()})


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"cannot read {path} ({error}); is {path.parent} the workdir of a run?"
        ) from error
