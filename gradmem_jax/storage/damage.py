"""Damaged checkpoints: how they are told from a disk that fails, and where they are put."""

import json
import os
import pathlib
import re
import shutil

import jax
from absl import logging

DAMAGED = "damaged"
# What Tensorstore, which raises ValueError always, says when the system refuses to give a file.
_STORAGE_FAILURE = r"\A(PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE)|os_error_code="
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


def check_metrics(directory: pathlib.Path, *, move: bool) -> None:
    """Finds checkpoints whose metrics are no JSON: Orbax would open none beside them.

    With `move` they are set aside, else refused by a ValueError.
    """
    for path in directory.glob("*/metrics/metrics"):
        step = path.parts[-3]
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            if not move:
                raise ValueError(
                    f"{path} is damaged: {error}. Move the folder {step} away to use the other "
                    "checkpoints; training that goes on does so."
                ) from error
            logging.error("checkpoint of step %s is damaged and set aside: %s", step, error)
            set_aside(directory, step)


def set_aside(directory: pathlib.Path, step: str) -> None:
    """Moves a damaged checkpoint out of the directory, in place of an earlier one of the step."""
    aside = directory.with_name(f"{directory.name}.{DAMAGED}")
    aside.mkdir(exist_ok=True)
    shutil.rmtree(aside / step, ignore_errors=True)
    (directory / step).rename(aside / step)


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

    def refuse(error: OSError) -> None:
        raise error

    try:
        for place, _, names in os.walk(folder, onerror=refuse):
            for name in names:
                pathlib.Path(place, name).read_bytes()
    except OSError as error:
        return isinstance(error, _MISSING)
    return True
