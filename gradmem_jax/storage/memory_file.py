"""Memories on disk: a safetensors file that knows which model it belongs to.

The file holds the arrays of a memory and, as metadata, a format version, the fingerprint and the
configuration of the model, and for every context its name, length, WRITE losses and a checksum.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.checks import is_traced, require, require_instance
from gradmem_jax.memory.interface import Memory, MemoryModel, MemoryT
from gradmem_jax.storage.arrays_file import open_arrays, write_arrays
from gradmem_jax.storage.fingerprint import (
    Fingerprint,
    describe_config,
    read_fields,
    take_fingerprint,
)
from gradmem_jax.storage.hashing import hash_bytes
from gradmem_jax.trees import Params, named_leaves

FORMAT, VERSION = "gradmem_jax memory", "1"


@dataclasses.dataclass(frozen=True)
class StoredContext:
    """What a file says of one context.

    Attributes:
        name: what it is called, such as its path.
        num_tokens: its length without padding; None if the writer did not say.
        write_losses: WRITE loss before each step in nats a token, a row for each segment.
        final_loss: loss of all its tokens given the stored memory.
    """

    name: str
    num_tokens: int | None = None
    write_losses: tuple[tuple[float, ...], ...] = ()
    final_loss: float | None = None


class Header(NamedTuple):
    """All that a file says beside its arrays.

    Attributes:
        fingerprint: of the model that wrote it.
        config: the model's configuration.
        contexts: one for each stored memory.
        notes: what the writer wanted to be kept.
        checksums: one for each stored memory.
    """

    fingerprint: Fingerprint
    config: dict[str, Any]
    contexts: tuple[StoredContext, ...]
    notes: dict[str, Any]
    checksums: tuple[str, ...]


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
        ValueError: the memory is not one of this model, is not finite, or is traced; or there are
            not as many contexts.
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
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": (fingerprint or take_fingerprint(model, params))._asdict(),
        "config": describe_config(model),
        "contexts": [dataclasses.asdict(context) for context in contexts],
        "notes": dict(notes or {}),
        "checksums": _row_checksums(arrays),
    }
    try:
        texts = {name: json.dumps(value) for name, value in metadata.items()}
    except TypeError as error:
        raise ValueError(f"notes and contexts must be what JSON has: {error}.") from error
    texts["header_checksum"] = _header_checksum(texts)
    write_arrays(path, arrays, texts)


def _header_checksum(texts: Mapping[str, str]) -> str:
    kept = {name: text for name, text in texts.items() if name != "header_checksum"}
    return hash_bytes(json.dumps(kept, sort_keys=True).encode())


def _header(path: str | pathlib.Path, file: Any) -> Header:
    texts = file.metadata() or {}
    require(
        texts.get("format") == json.dumps(FORMAT),
        f"{path} is a safetensors file, but not a memory of gradmem_jax.",
    )
    require(
        texts.get("version") == json.dumps(VERSION),
        f"{path} has format version {texts.get('version')}; this gradmem_jax reads {VERSION!r}.",
    )
    require(
        texts.get("header_checksum") == _header_checksum(texts),
        f"{path} is damaged: its header does not fit its checksum.",
    )
    values = {name: json.loads(texts[name]) for name in (*Header._fields,)}
    contexts = (
        StoredContext(**c | {"write_losses": tuple(map(tuple, c["write_losses"]))})
        for c in values["contexts"]
    )
    return Header(
        Fingerprint(**values["fingerprint"]),
        values["config"],
        tuple(contexts),
        values["notes"],
        tuple(values["checksums"]),
    )


def read_header(path: str | pathlib.Path) -> Header:
    """Reads what a file says of its contexts and its model; no arrays.

    Raises:
        ValueError: the file is missing, damaged, or no memory.
    """
    with open_arrays(path, "memory") as file:
        return _header(path, file)


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
    """
    require_instance("model", model, MemoryModel)
    require_instance("contexts", contexts, slice)
    require_instance("fingerprint", fingerprint, Fingerprint | None)
    model.check_params(params)
    with open_arrays(path, "memory") as file:
        header = _header(path, file)
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
        arrays = {name: file.get_slice(name)[start:stop] for name in file.keys()}  # noqa: SIM118
    require(
        _row_checksums(arrays) == list(header.checksums[start:stop]),
        f"{path} is damaged: its arrays do not fit their checksums.",
    )
    expected = _structure(model, params)
    names = list(named_leaves(expected))
    require(
        sorted(names) == sorted(arrays),
        f"{path} holds the arrays {sorted(arrays)}, a memory of this model has {sorted(names)}.",
    )
    leaves = [jnp.asarray(arrays[name]) for name in names]
    memory = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    model.check_memory(params, memory, stop - start)
    return memory


def _structure(model: MemoryModel, params: Params) -> Memory:
    """Shapes of a memory of one context."""

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
            f"{name} {stored.get(name)!r} in the file, {here.get(name)!r} here"
            for name in {**stored, **here}
            if stored.get(name) != here.get(name)
        ]
        raise ValueError(
            f"{path} was written by a model of another configuration: {'; '.join(different)}."
        )
    require(
        known.weights == header.fingerprint.weights,
        f"{path} was written with other parameters than these (fingerprint "
        f"{header.fingerprint.weights}, here {known.weights}); load the checkpoint that wrote it, "
        "or write the contexts again.",
    )
