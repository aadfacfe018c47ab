"""Files that programs read and write: what flags say of them is checked before any work."""

import glob
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gradmem_jax.checks import require, require_local
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage import reading
from gradmem_jax.storage.writing import write_text

FIGURES = (".png", ".pdf", ".svg")
# Of the results that programs write as JSON, see docs/json_files.md. It grows when a field gets
# another meaning. Files without it, from before 2026-12, are read as version 1.
VERSION = 1


def output_figure(flag: str, path: str | pathlib.Path) -> pathlib.Path:
    """Makes the folder of a figure that a flag names and sees that the figure can be written.

    Raises:
        ValueError: it cannot, or its ending is not that of a figure.
    """
    path = pathlib.Path(path)
    require(
        path.suffix.lower() in FIGURES,
        f"--{flag}={path} must end in one of {', '.join(FIGURES)}; name it {path}.png.",
    )
    return output_file(flag, path)


def matching_files(patterns: Iterable[str]) -> list[str]:
    """The files that paths and patterns such as `docs/*.txt` name."""
    return [path for text in patterns for path in (text, *_matching(text))]


def find_files(pattern: str) -> list[str]:
    """The files that a path or a pattern such as `docs/*.txt` names, one at least.

    Folders that are there have their names, whatever signs are in them: of `runs[1]/*.txt` only the
    last part is a pattern if there is a folder `runs[1]`.

    Raises:
        ValueError: there is none.
    """
    require_local("file", pattern)
    found = [pattern] if os.path.exists(pattern) else _matching(pattern)
    require(bool(found), f"there is no file {shown(pattern)}; name one that exists.")
    return found


def _matching(pattern: str) -> list[str]:
    parts = pattern.split(os.sep)
    folders = itertools.accumulate(part + os.sep for part in parts[:-1])
    *_, folder = "", *itertools.takewhile(os.path.isdir, folders)
    return sorted(glob.glob(glob.escape(folder) + pattern[len(folder) :], recursive=True))


def check_apart(outputs: Mapping[str, str | None], inputs: Iterable[str]) -> None:
    """Refuses to write a file that is read, or two outputs into one file.

    Args:
        outputs: paths by flag; None where a flag is not given.
        inputs: paths of what is read.
    """
    taken = {os.path.realpath(path): f"read from {path}" for path in inputs}
    for flag, path in outputs.items():
        if path is not None:
            where = os.path.realpath(path)
            require(
                where not in taken,
                f"--{flag}={path} is also {taken.get(where)}; choose another file.",
            )
            taken[where] = f"--{flag}"


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
    write_text(path, json.dumps(to_json(value), indent=1) + "\n")


def write_results(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes results of a program as JSON, see `write_json`, with the version of their fields."""
    write_json(path, {"version": VERSION} | dict(results))


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    try:
        return reading.read_json(path, "file of a run")
    except ValueError as error:
        raise ValueError(f"{error} Is {path.parent} the workdir of a run?") from error
