"""Parameters on disk: a safetensors file of their arrays and nothing else, to keep or to share."""

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.checks import (
    DTYPES,
    ENABLE_X64,
    is_traced,
    require,
    require_choice,
    require_instance,
)
from gradmem_jax.storage.arrays_file import open_arrays, write_arrays
from gradmem_jax.storage.hashing import hash_bytes
from gradmem_jax.trees import Params, named_leaves

FORMAT = "gradmem_jax parameters"


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
        ValueError: the file is missing, damaged, another kind of file, or has numbers of 64 bits,
            which JAX takes only if `jax_enable_x64` is set.
    """
    with open_arrays(path, "file of parameters") as file:
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    require(
        metadata.get("format") == FORMAT,
        f"{path} is a safetensors file, but not one of gradmem_jax's parameters.",
    )
    try:
        dtypes = json.loads(metadata["dtypes"])
        fits = metadata["checksum"] == _checksum(arrays, dtypes) and dtypes.keys() == arrays.keys()
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: its metadata lacks dtypes or checksum ({error!r}); get the file "
            "again."
        ) from error
    require(fits, f"{path} is damaged: its arrays do not fit their checksum.")
    for name, dtype in dtypes.items():
        require(
            jax.dtypes.canonicalize_dtype(dtype) == dtype,
            f"params[{name!r}] of {path} is {dtype}, which JAX would cut to 32 bits; {ENABLE_X64}",
        )
    params: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = jnp.asarray(array, dtypes[name])
    return params


def _check_names(params: Any, place: str = "params") -> None:
    """Raises ValueError unless what comes back from a file is what was saved."""
    for name, value in params.items():
        require(
            isinstance(name, str) and "/" not in name,
            f"{place} has the key {name!r}; names must be texts without '/', which parts them in "
            "the file.",
        )
        inner = f"{place}[{name!r}]"
        if isinstance(value, dict):
            _check_names(value, inner)
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
