"""The steps in a folder of checkpoints: their names, and what may lie in one that is read."""

import datetime
import glob
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils.epath.gpath import PosixGPath

from gradmem_jax.checks import require, require_local
from gradmem_jax.foreign_text import is_text, shown
from gradmem_jax.storage.reading import require_file

_MOST_FILES = 100_000  # of a checkpoint


def saved_steps(directory: str | pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a directory, in ascending order.

    Nothing else is one: no folder of another name, and no link, which leads to files of others.
    """
    return sorted(int(path.name) for path in pathlib.Path(directory).glob("*") if _is_step(path))


def _is_step(path: pathlib.Path) -> bool:
    is_number = re.fullmatch("0|[1-9][0-9]{0,17}", path.name) is not None
    return is_number and path.is_dir() and not path.is_symlink()


class OrbaxPath(PosixGPath):
    """A folder as Orbax has it: what its path holds is no pattern."""

    def glob(self, pattern: str) -> Iterator["OrbaxPath"]:
        """Yields what fits a pattern in this folder."""
        return map(OrbaxPath, glob.glob(os.path.join(glob.escape(str(self)), pattern)))


def orbax_path(folder: str | pathlib.Path) -> OrbaxPath:
    """Returns a folder of checkpoints as Orbax has it.

    Raises:
        ValueError: Orbax, or Tensorstore behind it, would write somewhere else than there.
    """
    require_local("directory", folder)
    folder = pathlib.Path(folder).absolute()
    scheme = any(f"{name}:" in folder.parts for name in ("gs", "s3", "az", "hf"))
    require(
        "\\" not in str(folder) and not scheme and is_text(str(folder)),
        f"{shown(str(folder))}: checkpoints cannot be written to a path with a backslash, with "
        "bytes that are not UTF-8, or with a folder called gs:, s3:, az: or hf:. Choose another.",
    )
    return OrbaxPath(folder)


class _Step(ocp.path.step.Metadata):
    """A step as Orbax lists it."""

    @property
    def commit_timestamp(self) -> datetime.datetime:
        """When its folder was last changed; a file in it may say anything."""
        return datetime.datetime.fromtimestamp(self.path.stat().mtime, tz=datetime.UTC)


class StepNames(ocp.path.step.NameFormat):
    """Tells Orbax what a step is: it reads, moves and deletes nothing else."""

    def build_name(self, step: int) -> str:
        """Returns the name of a step's folder."""
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[_Step]:
        """Returns all steps in a folder."""
        found = saved_steps(os.fspath(base_path))
        return (self.find_step(base_path, step) for step in found)

    def find_step(self, base_path: Any, step: int) -> _Step:
        """Returns one of them.

        Args:
            base_path: the folder, as Orbax has it.
            step: its number.

        Raises:
            ValueError: it is not there.
        """
        path = base_path / str(step)
        require(_is_step(pathlib.Path(path)), f"{path} is no folder of a checkpoint.")
        return _Step(step=step, path=path)


def check_files(folder: pathlib.Path) -> int:
    """Returns the bytes of the files of a checkpoint; whatever reads it may hang on other things.

    Raises:
        ValueError: one is no regular file, or there are too many.
    """
    size = 0
    for count, path in enumerate(walk(folder)):
        require(count < _MOST_FILES, f"{folder} has more than {_MOST_FILES} files.")
        size += require_file(path, "file of a checkpoint")
    return size


def walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields what lies in a folder, folders aside; raises OSError if the system refuses it."""

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        links = (name for name in folders if os.path.islink(os.path.join(place, name)))
        for name in (*names, *links):
            yield pathlib.Path(place, name)
