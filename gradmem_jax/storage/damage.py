"""Damaged checkpoints: how they are told from a disk that fails, and where they are put."""

import pathlib
import re
import shutil

import jax
from absl import logging

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import one_line
from gradmem_jax.storage.reading import MEBIBYTE, read_json
from gradmem_jax.storage.steps import saved_steps, walk
from gradmem_jax.storage.writing import require_no_link

DAMAGED = "damaged"
_LONGEST_REASON = 500  # characters
# What Tensorstore, which raises ValueError always, says when the system refuses to give a file.
_STORAGE_FAILURE = r"\A(PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE)|os_error_code="
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""

    def __init__(self, message: str) -> None:
        """Takes a message, and makes it one line."""
        super().__init__(one_line(message))


def reason(error: BaseException | None) -> str:
    """What an error says, in one short line; those of Orbax and Tensorstore go on for pages."""
    if error is None:
        return "another process says why"
    text = " ".join(str(error).split()).rstrip(".")
    return one_line(text or type(error).__name__, _LONGEST_REASON)


def check_metrics(directory: pathlib.Path, name: str, *, move: bool) -> None:
    """Finds checkpoints whose metrics cannot be read: Orbax would open none beside them.

    Args:
        directory: of the checkpoints.
        name: a metric that must be among them, unless there are none.
        move: set such checkpoints aside.

    Raises:
        ValueError: there is one, and it is not to be moved.
    """
    for step in saved_steps(directory):
        path = directory / str(step) / "metrics" / "metrics"
        if not path.exists():
            continue
        try:
            metrics = read_json(path, "file of metrics")
            value = metrics.get(name) if isinstance(metrics, dict) else None
            require(isinstance(value, int | float), f"{path} has no number {name!r}.")
        except ValueError as error:
            if not move:
                raise ValueError(
                    f"{error} Move the folder {step} away to use the other checkpoints; training "
                    "that goes on does so."
                ) from error
            logging.error("checkpoint of step %d is damaged and set aside: %s", step, error)
            set_aside(directory, step)


def set_aside(directory: pathlib.Path, step: int) -> None:
    """Moves a damaged checkpoint out of the directory, in place of an earlier one of the step."""
    aside = directory.with_name(f"{directory.name}.{DAMAGED}")
    require_no_link(aside)
    aside.mkdir(exist_ok=True)
    place = aside / str(step)
    require_no_link(place)
    if place.exists():
        shutil.rmtree(place)
    (directory / str(step)).rename(place)


def is_damage(error: Exception, folder: pathlib.Path) -> bool:
    """Whether a checkpoint that could not be restored has files that are wrong or missing.

    Otherwise the disk did not give them, or they are well and this machine could not take them.
    """
    cause: BaseException | None = error
    while cause is not None:
        is_storage = isinstance(cause, OSError) and not isinstance(cause, _MISSING)
        is_other = isinstance(cause, CheckpointError | MemoryError | jax.errors.JaxRuntimeError)
        if is_storage or is_other or re.search(_STORAGE_FAILURE, str(cause)):
            return False
        cause = cause.__cause__ or cause.__context__
    return _can_be_read(folder)


def _can_be_read(folder: pathlib.Path) -> bool:
    """Whether the system gives all files that are there; Orbax calls some others missing."""
    try:
        for path in walk(folder):
            if path.is_file():  # of a device there is no end
                with path.open("rb") as file:
                    while file.read(MEBIBYTE):
                        pass
    except OSError as error:
        return isinstance(error, _MISSING)
    return True
