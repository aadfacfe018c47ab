"""Memories on disk: a safetensors file that knows which model it belongs to.

The file holds the arrays of a memory and, as metadata, a format version, the fingerprint and the
configuration of the model, and for every context its name, length, WRITE losses and a checksum.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.checks import is_traced, require, require_instance
from gradmem_jax.foreign_text import one_line, shortened, shown
from gradmem_jax.memory.interface import Memory, MemoryModel, MemoryT
from gradmem_jax.storage.arrays_file import open_arrays, read_array, write_arrays
from gradmem_jax.storage.fingerprint import (
    Fingerprint,
    describe_config,
    read_fields,
    take_fingerprint,
)
from gradmem_jax.storage.hashing import hash_bytes
from gradmem_jax.storage.memory_header import Header, StoredContext, header_texts, parse_header
from gradmem_jax.trees import Params, named_leaves


def _row_checksums(arrays: Mapping[str, np.ndarray]) -> list[str]:
    count = len(next(iter(arrays.values())))
    ordered = [arrays[name] for name in sorted(arrays)]
    return [hash_bytes(*(array[i].tobytes() for array in ordered)) for i in range(count)]


def save_memory(
    path: str | pathlib.Path,
    memory: MemoryT,
    model: MemoryModel[MemoryT],
    params: Params,
    *,
    contexts: Sequence[StoredContext] | None = None,
    notes: Mapping[str, Any] | None = None,
    fingerprint: Fingerprint | None = None,
) -> None:
    """Writes a memory to a file in one step: readers see the old file or the new one, whole.

    Args:
        path: the file, usually `*.safetensors`; its folder is made if missing.
        memory: what `write_memory` of any model returned for B contexts; kept bit by bit.
        model: the model that wrote it.
        params: its parameters.
        contexts: what is known of each of the B contexts; by default they are numbered.
        notes: more to keep, in terms that JSON has.
        fingerprint: of model and parameters, if it is already known.

    Raises:
        ValueError: the memory is not one of this model, is not finite, or is traced; there are not
            as many contexts; or what is known of them takes more than the 100 MB that a file has
            room for beside its arrays.

    Examples:
        >>> gradmem_jax.save_memory("memory.safetensors", memory, model, params)
    """
    require_instance("model", model, MemoryModel)
    require_instance("path", path, str | os.PathLike)
    model.check_params(params)
    leaves = named_leaves(memory)
    require(
        not any(is_traced(leaf) for leaf in leaves.values()),
        "the memory is traced: save it outside of jit, vmap and grad.",
    )
    batch_size = next((len(leaf) for leaf in leaves.values() if np.ndim(leaf)), 0)
    model.check_memory(params, memory, batch_size)
    require(batch_size > 0, "the memory is of no context; there is nothing to save.")
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    if contexts is None:
        contexts = [StoredContext(str(i)) for i in range(batch_size)]
    contexts = tuple(contexts)
    for context in contexts:
        require_instance("contexts", context, StoredContext)
    require(
        len(contexts) == batch_size,
        f"contexts has {len(contexts)} entries, the memory is of {batch_size}.",
    )
    require_instance("notes", notes, Mapping | None)
    require_instance("fingerprint", fingerprint, Fingerprint | None)
    header = Header(
        fingerprint or take_fingerprint(model, params),
        describe_config(model),
        contexts,
        dict(notes or {}),
        tuple(_row_checksums(arrays)),
    )
    write_arrays(path, arrays, header_texts(header))


def read_header(path: str | pathlib.Path) -> Header:
    """Reads what a file says of its contexts and its model; no arrays.

    Raises:
        ValueError: the file is missing, damaged, or no memory.

    Examples:
        >>> from gradmem_jax.storage.memory_file import read_header
        >>> gradmem_jax.save_memory("memory.safetensors", memory, model, params)
        >>> header = read_header("memory.safetensors")
        >>> [context.name for context in header.contexts]
        ['0', '1']
    """
    with open_arrays(path, "memory") as file:
        return parse_header(path, file.metadata() or {})


def load_memory(
    path: str | pathlib.Path,
    model: MemoryModel[MemoryT],
    params: Params,
    contexts: slice = slice(None),
    *,
    fingerprint: Fingerprint | None = None,
) -> MemoryT:
    """Reads a memory, or a range of its contexts, into the model that wrote it.

    Args:
        path: what `save_memory` wrote.
        model: the model that wrote it; how its WRITE is configured may differ.
        params: its parameters.
        contexts: which contexts, as in `slice(0, 10)`; all by default. Others are not read.
        fingerprint: of model and parameters, if it is already known.

    Returns:
        The memory, of the same structure, dtypes and bits.

    Raises:
        ValueError: the file is missing or damaged, the range is empty, or the memory was written
            by a model of another configuration or with other parameters.

    Examples:
        >>> gradmem_jax.save_memory("memory.safetensors", memory, model, params)
        >>> gradmem_jax.load_memory("memory.safetensors", model, params, slice(0, 1)).shape
        (1, 2, 8)
    """
    require_instance("model", model, MemoryModel)
    require_instance("contexts", contexts, slice)
    require_instance("fingerprint", fingerprint, Fingerprint | None)
    model.check_params(params)
    with open_arrays(path, "memory") as file:
        header = parse_header(path, file.metadata() or {})
        _check_model(path, header, model, params, fingerprint)
        try:
            start, stop, step = contexts.indices(len(header.contexts))
        except TypeError as error:
            raise ValueError(f"contexts={contexts} must be of whole numbers: {error}.") from error
        require(
            step == 1 and start < stop,
            f"contexts={contexts} takes none of the {len(header.contexts)} contexts of {path}, or "
            "not neighbours; give a range such as slice(0, 1).",
        )
        expected = _structure(model, params)
        wanted = named_leaves(expected)
        _check_shapes(path, file, wanted, len(header.contexts), model.config.lm.max_positions)
        arrays = {name: read_array(path, file, name, slice(start, stop)) for name in wanted}
    require(
        _row_checksums(arrays) == list(header.checksums[start:stop]),
        f"{path} is damaged: its arrays do not fit their checksums.",
    )
    for name, array in arrays.items():
        _check_values(path, name, array, wanted[name].dtype, header.contexts[start:stop])
    leaves = [jnp.asarray(array) for array in arrays.values()]
    memory = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    model.check_memory(params, memory, stop - start)
    return memory


def _check_shapes(
    path: str | pathlib.Path,
    file: Any,
    wanted: Mapping[str, Any],
    count: int,
    max_positions: int,
) -> None:
    """Refuses arrays that are not those of `count` memories of a model, before they are read."""
    names = sorted(file.keys())
    require(
        sorted(wanted) == names,
        f"{path} holds the arrays {shown(names)}, a memory of this model has {sorted(wanted)}.",
    )
    for name, one in wanted.items():
        shape = file.get_slice(name).get_shape()
        require(
            shape[:1] == [count],
            f"{path} is damaged: {name} has shape {shown(shape)}, and the file says that it holds "
            f"{count} contexts.",
        )
        require(
            len(shape) == len(one.shape)
            and all(
                size == usual or size <= max_positions
                for size, usual in zip(shape[1:], one.shape[1:], strict=True)
            ),
            f"{path} is damaged: {name} has shape {shown(shape)}, a memory of this model has "
            f"{list(one.shape)}.",
        )


def _check_values(
    path: str | pathlib.Path,
    name: str,
    array: np.ndarray,
    dtype: Any,
    contexts: Sequence[StoredContext],
) -> None:
    """Refuses an array that is of another dtype, which JAX might convert, or is not finite."""
    require(
        array.dtype == dtype,
        f"{path} is damaged: {name} is {array.dtype}, a memory of this model has {dtype}.",
    )
    if not jnp.issubdtype(dtype, jnp.floating):
        return
    for context, row in zip(contexts, array, strict=True):
        require(
            bool(np.isfinite(row).all()),
            f"{path} holds a memory that is not finite, of the context {shown(context.name)}: "
            "write it again.",
        )


def _structure(model: MemoryModel, params: Params) -> Memory:
    """Shapes of a memory of one context."""
    model = dataclasses.replace(model, num_write_parts=1)

    def write(params: Params, ids: jax.Array) -> Memory:
        return model.write_memory(params, ids, num_steps=0)[0]

    return jax.eval_shape(write, params, jax.ShapeDtypeStruct((1, 1), jnp.int32))


def _check_model(
    path: str | pathlib.Path,
    header: Header,
    model: MemoryModel,
    params: Params,
    fingerprint: Fingerprint | None,
) -> None:
    known = fingerprint or take_fingerprint(model, params)
    if known.config != header.fingerprint.config:
        stored, here = (read_fields(x, model) for x in (header.config, describe_config(model)))
        different = [
            f"{one_line(name, 60)} {shown(stored.get(name))} in the file, {shown(here.get(name))} "
            "here"
            for name in {**stored, **here}
            if stored.get(name) != here.get(name)
        ]
        raise ValueError(
            f"{path} was written by a model of another configuration: "
            f"{shortened('; '.join(different))}."
        )
    require(
        known.weights == header.fingerprint.weights,
        f"{path} was written with other parameters than these (fingerprint "
        f"{one_line(header.fingerprint.weights, 40)}, here {known.weights}); load the checkpoint "
        "that wrote it, or write the contexts again.",
    )
