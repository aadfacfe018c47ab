"""Safetensors files, written whole or not at all; nothing in them is executed."""

import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from gradmem_jax.checks import require, require_instance


def write_arrays(
    path: str | pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes arrays and texts in one step: readers see the old file or the new one, whole."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(save(dict(arrays), metadata=dict(metadata)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_arrays(path: str | pathlib.Path, what: str) -> Any:
    """Opens a file of `what`; raises ValueError if it is missing or cannot be read."""
    require_instance("path", path, str | os.PathLike)
    path = pathlib.Path(path)
    require(path.is_file(), f"{path} is not a file; where is the {what}?")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except Exception as error:  # safetensors raises errors of several kinds
        raise ValueError(
            f"{path} cannot be read as a {what}: it is cut short, damaged, or another kind of file "
            f"({error})."
        ) from error
