"""Parameters on disk: a safetensors file of their arrays and nothing else, to keep or to share."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.array_checks import require_finite
from gradmem_jax.checks import (
    DTYPES,
    ENABLE_X64,
    is_traced,
    require,
    require_choice,
    require_instance,
)
from gradmem_jax.foreign_text import is_text, shown
from gradmem_jax.storage.arrays_file import open_arrays, read_array, write_arrays
from gradmem_jax.storage.hashing import hash_bytes
from gradmem_jax.storage.reading import parse_json
from gradmem_jax.trees import Params, named_leaves

FORMAT = "gradmem_jax parameters"
_MOST_FOLDERS = 32  # around an array; modules of a model are nested less deep
_INTEGERS = {"bool": "BOOL"}  # what safetensors calls them
_INTEGERS |= {f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)}
_INTEGERS |= {f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)}


def save_params(path: str | pathlib.Path, params: Params, dtype: str | None = None) -> None:
    """Writes parameters to a file in one step: readers see the old file or the new one, whole.

    Args:
        path: the file, usually `*.safetensors`; its folder is made if missing.
        params: nested dict of arrays, those of any model.
        dtype: what floating-point arrays are stored as, such as "float16" for half the size; None
            keeps every bit.

    Raises:
        ValueError: the parameters are traced, empty, not finite or no nested dict of arrays, or do
            not fit into `dtype`.

    Examples:
        >>> gradmem_jax.save_params("params.safetensors", params, dtype="float16")
    """
    require_instance("path", path, str | os.PathLike)
    require_instance("params", params, dict)
    require_choice("dtype", dtype, (None, *DTYPES))
    _check_names(params)
    leaves = named_leaves(params)
    require(bool(leaves), "params has no arrays; there is nothing to save.")
    require(
        not any(is_traced(leaf) for leaf in leaves.values()),
        "the parameters are traced: save them outside of jit, vmap and grad.",
    )
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    if dtype is not None:
        arrays = {name: _stored(name, array, dtype) for name, array in arrays.items()}
    for name, array in arrays.items():
        require(
            bool(np.isfinite(array.astype(np.float64)).all()),
            f"params[{name!r}] is not finite as {array.dtype}; a smaller dtype may be too small.",
        )
    metadata = {
        "format": FORMAT,
        "dtypes": json.dumps(dtypes),
        "checksum": _checksum(arrays, dtypes),
    }
    write_arrays(path, arrays, metadata)


def load_params(path: str | pathlib.Path) -> Params:
    """Reads what `save_params` wrote.

    Returns:
        Nested dict of arrays in the dtypes they had when they were saved.

    Raises:
        ValueError: the file is missing, damaged, another kind of file, has numbers that are not
            finite, or such of 64 bits, which JAX takes only if `jax_enable_x64` is set.

    Examples:
        >>> gradmem_jax.save_params("params.safetensors", params)
        >>> sorted(gradmem_jax.load_params("params.safetensors")) == sorted(params)
        True
    """
    with open_arrays(path, "file of parameters") as file:
        metadata = _read_metadata(path, file)
        dtypes = _read_dtypes(path, file, metadata)
        arrays = {name: read_array(path, file, name) for name in dtypes}
    require(
        metadata.get("checksum") == _checksum(arrays, dtypes),
        f"{path} is damaged: its arrays do not fit their checksum.",
    )
    params: dict[str, Any] = {}
    for name, array in arrays.items():
        require(
            jax.dtypes.canonicalize_dtype(dtypes[name]) == dtypes[name],
            f"params[{shown(name)}] of {path} is {dtypes[name]}, which JAX would cut to 32 bits; "
            f"{ENABLE_X64}",
        )
        _put(params, name, jnp.asarray(array, dtypes[name]), path)
    require_finite(params, f"the parameters of {path}")
    return params


def stored_shapes(path: str | pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the arrays of a file, none of which is read."""
    with open_arrays(path, "file of parameters") as file:
        dtypes = _read_dtypes(path, file, _read_metadata(path, file))
        return {name: tuple(file.get_slice(name).get_shape()) for name in dtypes}


def _read_metadata(path: str | pathlib.Path, file: Any) -> dict[str, str]:
    metadata = file.metadata() or {}
    require(
        metadata.get("format") == FORMAT,
        f"{path} is a safetensors file, but not one of gradmem_jax's parameters.",
    )
    return metadata


def _read_dtypes(
    path: str | pathlib.Path, file: Any, metadata: Mapping[str, str]
) -> dict[str, str]:
    """Returns by name what an array is to be; refuses what it cannot be."""
    dtypes = parse_json(metadata.get("dtypes", ""), str(path))
    require(
        isinstance(dtypes, dict) and bool(dtypes) and dtypes.keys() == set(file.keys()),
        f"{path} is damaged: its metadata dtypes must name its arrays; get the file again.",
    )
    for name, dtype in dtypes.items():
        stored = file.get_slice(name).get_dtype()
        require(
            isinstance(dtype, str) and _fits(stored, dtype),
            f"{path} is damaged: params[{shown(name)}], stored as {stored}, cannot be a "
            f"{shown(dtype)}; get the file again.",
        )
    return dtypes


def _fits(stored: str, dtype: str) -> bool:
    """Whether numbers of a type of safetensors, such as F16, may become some of a dtype."""
    try:
        kind = jnp.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):
        return False
    if jnp.issubdtype(kind, jnp.floating):
        return stored.startswith(("F", "BF")) and str(kind) == dtype
    return stored == _INTEGERS.get(dtype)


def _put(params: dict[str, Any], name: str, array: jax.Array, path: str | pathlib.Path) -> None:
    """Puts an array into a nested dict, where its name says."""
    *folders, last = name.split("/")
    place: Any = params
    for folder in folders[:_MOST_FOLDERS]:
        place = place.setdefault(folder, {}) if isinstance(place, dict) else None
    require(
        isinstance(place, dict) and last not in place and len(folders) <= _MOST_FOLDERS,
        f"{path} is damaged: params[{shown(name)}] is also the folder of others, or in more than "
        f"{_MOST_FOLDERS} folders; get the file again.",
    )
    place[last] = array


def _check_names(params: Any, place: str = "params", folders: int = 0) -> None:
    """Raises ValueError unless what comes back from a file is what was saved."""
    require(
        folders <= _MOST_FOLDERS,
        f"{shown(place)} is in more than {_MOST_FOLDERS} dicts; name the arrays in fewer.",
    )
    for name, value in params.items():
        require(
            isinstance(name, str)
            and is_text(name)
            and name not in ("", "__metadata__")
            and "/" not in name,
            f"{place} has the key {name!r}; names must be texts in UTF-8, not empty, not "
            "'__metadata__', and without '/', which parts them in the file.",
        )
        inner = f"{place}[{name!r}]"
        if isinstance(value, dict):
            _check_names(value, inner, folders + 1)
        else:
            require(
                jax.tree_util.all_leaves([value]),
                f"{inner} is a {type(value).__name__}; parameters are nested dicts of arrays.",
            )


def _stored(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    with np.errstate(over="ignore"):
        return array.astype(jnp.dtype(dtype)) if floating else array


def _checksum(arrays: dict[str, np.ndarray], dtypes: dict[str, str]) -> str:
    parts = [json.dumps(dtypes, sort_keys=True).encode()]
    for name in sorted(arrays):
        kind = f"{name} {arrays[name].dtype} {arrays[name].shape}"
        parts += [kind.encode(), arrays[name].tobytes()]
    return hash_bytes(*parts)
