"""Memory files that strangers made: damaged, or with all checksums right and wrong in a part."""

import copy
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save, save_file

from experiments.answers.reopen_model import reopen_model
from gradmem_jax.storage.fingerprint import hash_bytes, take_fingerprint
from gradmem_jax.storage.memory_file import StoredContext, load_memory, save_memory
from gradmem_jax.storage.memory_header import parse_header
from tests.hostile.inputs import DEEP, damaged, no_files
from tests.small import small_model, small_params

Case = tuple[str, Callable[[], object], bool]

# A part of the header, what is put there, and by which keys it is reached.
_WRONG: dict[tuple[Any, ...], list[Any]] = {
    ("fingerprint",): [None, [], "x", 1, {}, {"config": "x"}, {"config": 1, "weights": []}],
    ("fingerprint", "config"): [None, 1, [], {}, "other"],
    ("fingerprint", "weights"): [None, 1, [], {}, "\x1b[2J\n" * 10**5],
    ("config",): [None, [], 1, "x", [["a", 1]]],
    ("notes",): [None, [], 1, "x"],
    ("checksums",): [None, {}, "ab", [], ["x"], [1, 2], [None, None], ["x", "y", "z"]],
    ("contexts",): [None, {}, "ab", [], [1, 2], [{}, {}], [None, None], [[], []], 10**30],
    ("contexts", 0): [None, 1, "x", [], {}, {"name": "a"}],
    ("contexts", 0, "name"): [None, 1, True, [], {}, ["a"]],
    ("contexts", 0, "num_tokens"): [-1, 1.5, "1", [], {}, True, 10**400],
    ("contexts", 0, "write_losses"): [None, 1, "x", {}, [1], ["12"], [[None]], [["x"]], [{}]],
    ("contexts", 1, "write_losses"): [[[True]], [[10**400]], [[[1.0]]], [[1.0], None]],
    ("contexts", 0, "final_loss"): ["x", [], {}, True, 10**400],
    ("contexts", 0, "payload"): [1],
}
_SOUND: dict[tuple[Any, ...], list[Any]] = {
    ("contexts", 0, "name"): ["", "\x1b[2J\nerror: x", "\ud800", "x" * 10**5],
    ("contexts", 0, "num_tokens"): [None, 0, 2**40],
    ("contexts", 0, "write_losses"): [[], [[]], [[1, 2.5], [float("nan")]]],
    ("contexts", 0, "final_loss"): [None, 3, float("inf")],
    ("notes",): [{"model": 5, "options": "x"}, {"deep": [[[[1]]]]}],
}


@functools.cache
def _written() -> tuple[Any, Any, Any, Any]:
    model = small_model()
    params = small_params(model)
    memory = np.array(jax.jit(model.initial_memory, static_argnums=1)(params, 2))
    return model, params, memory, take_fingerprint(model, params)


def _checksum(arrays: dict[str, np.ndarray]) -> list[str]:
    """Those of memory_file.py, of as many rows as there are."""
    ordered = [arrays[name] for name in sorted(arrays)]
    rows = max((len(x) for x in ordered if x.ndim), default=0)
    return [hash_bytes(*(x[i].tobytes() for x in ordered if len(x) > i)) for i in range(rows)]


def _texts(header: dict[str, Any]) -> dict[str, str]:
    texts = {name: json.dumps(value) for name, value in header.items()}
    return _signed(texts)


def _signed(texts: dict[str, str]) -> dict[str, str]:
    kept = {name: text for name, text in texts.items() if name != "header_checksum"}
    return kept | {"header_checksum": hash_bytes(json.dumps(kept, sort_keys=True).encode())}


def _changed(header: dict[str, Any], keys: tuple[Any, ...], value: Any) -> dict[str, Any]:
    header = copy.deepcopy(header)
    place: Any = header
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return header


def cases(folder: pathlib.Path) -> Iterator[Case]:
    """Memory files, and what their notes say."""
    folder.mkdir()
    model, params, memory, fingerprint = _written()
    sound = folder / "sound.safetensors"
    contexts = [StoredContext(name, 3, ((1.0, 0.5),), 0.25) for name in "ab"]
    save_memory(sound, memory, model, params, contexts=contexts, fingerprint=fingerprint)
    number = iter(range(10**6))

    def load(path: pathlib.Path) -> Callable[[], object]:
        return functools.partial(load_memory, path, model, params, fingerprint=fingerprint)

    def stored(content: bytes) -> Callable[[], object]:
        path = folder / f"{next(number)}.safetensors"
        path.write_bytes(content)
        return load(path)

    def built(arrays: dict[str, np.ndarray], texts: dict[str, str]) -> Callable[[], object]:
        return stored(save(arrays, texts))

    yield "sound", load(sound), True
    for path in no_files(folder, "memory.safetensors"):
        yield f"memory is a {path.parent.name}", load(path), False
    for what, content in damaged(sound.read_bytes(), flips=24, cuts=8):
        yield f"memory, {what}", stored(content), False
    yield "header of 2**60 bytes", stored((2**60).to_bytes(8, "little") + b"{}"), False
    array = {"dtype": "F32", "shape": [2**40, 8], "data_offsets": [0, 2**45]}
    text = json.dumps({"memory": array}).encode()
    yield "array of 2**45 bytes", stored(len(text).to_bytes(8, "little") + text), False

    header = {
        "format": "gradmem_jax memory",
        "version": "1",
        "fingerprint": fingerprint._asdict(),
        "config": {"lm.width": 8},
        "contexts": [vars(context) for context in contexts],
        "notes": {"model": "runs/x", "options": {}},
        "checksums": _checksum({"memory": memory}),
    }
    texts = _texts(header)
    yield "built by hand", built({"memory": memory}, texts), True
    for table, accepted in ((_WRONG, False), (_SOUND, True)):
        for keys, values in table.items():
            for value in values:
                changed = _texts(_changed(header, keys, value))
                # Without arrays: opening one memory of a model takes a tenth of a second.
                call = functools.partial(parse_header, "memory", changed)
                if len(keys) == 1 or keys[0] == "fingerprint" or accepted:
                    call = built({"memory": memory}, changed)
                yield f"{keys}: {str(value)[:40]!r}", call, accepted
    for name in header:
        for text in (None, "", "{", DEEP, '{"a": 1' + "0" * 5000 + "}"):
            rest = {key: value for key, value in texts.items() if key != name}
            changed = _signed(rest if text is None else rest | {name: text})
            call = functools.partial(parse_header, "memory", changed)
            yield f"{name} is {str(text)[:10]}", call, False

    double = {"memory": memory.astype(np.float64)}
    others: dict[str, dict[str, np.ndarray]] = {
        "float64": double,
        "bfloat16": {"memory": memory.astype(jnp.bfloat16)},
        "integers": {"memory": memory.astype(np.int32)},
        "one row": {"memory": memory[:1]},
        "three rows": {"memory": np.concatenate([memory, memory[:1]])},
        "no rows": {"memory": memory[:0]},
        "flat": {"memory": memory.reshape(2, -1)},
        "transposed": {"memory": np.ascontiguousarray(memory.swapaxes(1, 2))},
        "a number": {"memory": np.float32(1.0)},
        "an extra array": {"memory": memory, "more": memory},
        "another name": {"\x1b[2Jmemory": memory},
        "no array": {},
    }
    for bad in (np.nan, np.inf, -np.inf):
        changed_memory = memory.copy()
        changed_memory[1, 0, 0] = bad
        others[str(bad)] = {"memory": changed_memory}
    for what, arrays in others.items():
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        checksums = _checksum(arrays)
        contexts_too = [header["contexts"][0]] * len(checksums)
        rows = {"checksums": checksums, "contexts": contexts_too}
        yield (
            f"{what}, signed",
            built(arrays, _texts(header | rows)),
            what in ("three rows", "one row"),
        )
        yield f"{what}, two contexts", built(arrays, _texts(header)), False
    path = folder / "f8.safetensors"
    save_file({"memory": memory.astype(jnp.float8_e4m3fn)}, path, texts)
    yield "8 bits", load(path), False

    for options in ({"num_memory_tokens": 10**12}, {"tokenizer_path": "/etc"}, [], {"a": 1}):
        for place in ("/etc", str(folder / "fifo"), "", 7, "a\0b", "x" * 10**5):
            notes = {"model": place, "options": options}
            call = functools.partial(reopen_model, str(sound), notes)
            yield f"notes: {str(place)[:20]!r}, {options}", call, False
