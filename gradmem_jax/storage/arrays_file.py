"""Safetensors files, written whole or not at all; nothing in them is executed."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors import SafetensorError
from safetensors.numpy import save_file

from gradmem_jax.checks import require, require_instance
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.storage.reading import require_file
from gradmem_jax.storage.writing import Writer, write_file

LARGEST_HEADER = 100_000_000  # bytes; safetensors writes and opens none that is larger


def arrays_writer(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Writer:
    """Returns what writes arrays and texts to a path; see storage/writing.py.

    Raises:
        ValueError: the texts, with what describes the arrays, are too long.
    """
    size = _header_bytes(arrays, metadata)
    require(
        size <= LARGEST_HEADER,
        f"what is to be said of {len(arrays)} arrays takes {size} bytes, and the header of a "
        f"safetensors file at most {LARGEST_HEADER}; save fewer contexts or arrays to one file, or "
        "shorter notes.",
    )

    def write(path: pathlib.Path) -> None:
        path.touch()
        usual_mode = path.stat().st_mode
        try:
            save_file(dict(arrays), path, metadata=dict(metadata))
        except SafetensorError as error:  # of a disk too, whose number is in the text only
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        path.chmod(usual_mode)  # safetensors lets nobody else read what it writes

    return write


def _header_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> int:
    """How long the header of a file will be, or a little more."""
    end = sum(array.nbytes for array in arrays.values())
    header = {"__metadata__": dict(metadata)} | {
        name: {"dtype": str(array.dtype), "shape": array.shape, "data_offsets": (end, end)}
        for name, array in arrays.items()
    }
    return len(json.dumps(header, separators=(",", ":")))


def write_arrays(
    path: str | pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes arrays and texts in one step: readers see the old file or the new one, whole.

    Raises:
        ValueError: see `arrays_writer`.
    """
    write_file(path, arrays_writer(arrays, metadata))


def open_arrays(path: str | pathlib.Path, what: str) -> Any:
    """Opens a file of `what`; raises ValueError if it is missing or cannot be read."""
    require_instance("path", path, str | os.PathLike)
    require_file(path, what)
    try:
        return safetensors.safe_open(path, framework="numpy")
    except Exception as error:  # safetensors raises errors of several kinds
        raise ValueError(
            f"{path} cannot be read as a {what}: it is cut short, damaged, or another kind of file "
            f"({one_line(str(error), 300)})."
        ) from error


def read_array(
    path: str | pathlib.Path, file: Any, name: str, rows: slice = slice(None)
) -> np.ndarray:
    """Reads an array of an open file, or some of its rows.

    Raises:
        ValueError: it is of a type that numpy does not have, or cannot be read.
    """
    try:
        return file.get_slice(name)[rows] if rows != slice(None) else file.get_tensor(name)
    except Exception as error:  # safetensors and numpy raise errors of several kinds
        raise ValueError(
            f"{path}: the array {shown(name)} cannot be read ({one_line(str(error), 300)})."
        ) from error
