"""Language models and tokenizers of strangers, Hugging Face's here."""

import filecmp
import json
import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from experiments.configs import default
from experiments.program import files
from experiments.run.exported import write_exported
from experiments.run.saved_run import SavedRun
from experiments.run.workdir import EXPORTED
from gradmem_jax import load_pretrained
from gradmem_jax.tokenizers.text_tokenizer import load_tokenizer, word_tokenizer
from tests.hostile.binary_models import gguf, llama2c
from tests.hostile.opening import TEXT, Case, opening
from tests.hostile.tokenizer_files import tokenizer_json

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def cases(folder: pathlib.Path) -> Iterator[Case]:
    """Yields a name, a call that opens an input, and whether it must be accepted."""
    parts = (
        *(_hugging_face, _safetensors, gguf, llama2c, tokenizer_json),
        *(_special_files, _exports),
    )
    for part in parts:
        place = folder / part.__name__
        place.mkdir()
        yield from part(place)


def _special(path: pathlib.Path) -> dict[str, Callable[[], object]]:
    """What may stand in place of a file, by name; each makes it."""
    return {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "zero": lambda: path.symlink_to("/dev/zero"),
        "proc": lambda: path.symlink_to("/proc/self/mem"),
        "loop": lambda: path.symlink_to(path.name),
        "nowhere": lambda: path.symlink_to("nowhere"),
        "sparse": lambda: _sparse(path),
        "no utf-8": lambda: path.write_bytes(b'{"a": "\xff\xfe"}'),
        "deep": lambda: path.write_text("[" * 200_000),
        "deep object": lambda: path.write_text('{"a":' * 100_000),
        "long number": lambda: path.write_text('{"a": ' + "9" * 10_000 + "}"),
        "empty": lambda: path.write_bytes(b""),
    }


def _sparse(path: pathlib.Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def _special_files(folder: pathlib.Path) -> Iterator[Case]:
    """Anything but a file in place of each file of a model."""
    whole = folder / "whole"
    _copy(whole, "lm_llama")
    word_tokenizer([TEXT]).save(whole / "tokenizer.json")
    (whole / "tokenizer_config.json").write_text("{}")
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    others = ("model.safetensors.index.json", "model.gguf", "model.bin", "tok5.bin", "other.json")
    for name in (*names, *others):
        for kind in _special(whole):
            place = folder / f"{name} {kind}"
            shutil.copytree(whole, place)
            (place / name).unlink(missing_ok=True)
            _special(place / name)[kind]()
            if name == "tok5.bin" or name == "other.json":
                yield f"{name}: {kind}", opening(load_tokenizer, place / name), False
            else:
                path = place / name if name in others[1:] else place
                yield f"{name}: {kind}", opening(load_pretrained, path), False


def _copy(place: pathlib.Path, name: str) -> pathlib.Path:
    place.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name / file, place)
    return place


def _hugging_face(folder: pathlib.Path) -> Iterator[Case]:
    """Models whose config.json or index asks for something strange."""
    theirs = json.loads((GOLDEN / "lm_llama" / "config.json").read_text())
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    wrong: dict[str, Mapping[str, Any]] = {
        f"{key}={value!r:.20}": {key: value}
        for key in (*sizes, "intermediate_size")
        for value in (10**9, 10**6, 2**62, 10**400, -1, 0, 1.5, True, "8", [], {}, None)
    }
    wrong |= {
        "wide": dict.fromkeys(("hidden_size", "head_dim"), 10**9)
        | dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 1),
        "mark": {"gradmem_jax_model": ["none"]},
    }
    for name, changes in wrong.items():
        place = _copy(folder / name.replace("/", " "), "lm_llama")
        (place / "config.json").write_text(json.dumps(theirs | changes))
        is_sound = name == "mark"  # the weights have none, so there is nothing to compare
        yield f"config.json: {name}", opening(load_pretrained, place), is_sound
    tensors = load_file(GOLDEN / "lm_llama" / "model.safetensors")
    index = dict.fromkeys(tensors, "model.safetensors")
    first = next(iter(tensors))
    outside = folder / "outside.safetensors"
    save_file(tensors, outside)
    for name, changes in {
        "sound": {},
        "above": {first: "../outside.safetensors"},
        "absolute": {first: str(outside)},
        "nested": {first: "a/../model.safetensors"},
        "null": {first: "model.safetensors\0"},
        "number": {first: 3},
        "more": {"more": "model.safetensors"},
        "twice": {first: "one.safetensors"},
    }.items():
        place = _copy(folder / f"index {name}", "lm_llama")
        save_file({first: tensors[first]}, place / "one.safetensors")
        file = place / "model.safetensors.index.json"
        file.write_text(json.dumps({"weight_map": index | changes}))
        yield f"index: {name}", opening(load_pretrained, place), name == "sound"
    linked = folder / "linked"  # as the cache of Hugging Face's hub does
    linked.mkdir()
    for file in ("config.json", "model.safetensors"):
        (linked / file).symlink_to(GOLDEN / "lm_llama" / file)
    yield "links", opening(load_pretrained, linked), True


def _safetensors(folder: pathlib.Path) -> Iterator[Case]:
    """Weights that are damaged, of strange types, or no numbers."""
    tensors = load_file(GOLDEN / "lm_llama" / "model.safetensors")
    name = "model.norm.weight"
    values = {
        "sound 64 bits": (tensors[name].astype(np.float64), True),
        "sound 16 bits": (tensors[name].astype(np.float16), True),
        "nan": (np.full_like(tensors[name], np.nan), False),
        "inf": (np.full_like(tensors[name], -np.inf), False),
        "too large": (np.full(tensors[name].shape, 1e300), False),
        "int8": (tensors[name].astype(np.int8), False),
        "bool": (tensors[name].astype(bool), False),
        "uint64": (tensors[name].astype(np.uint64), False),
        "empty": (tensors[name][:0], False),
    }
    for kind, (value, is_sound) in values.items():
        place = _copy(folder / kind, "lm_llama")
        save_file(tensors | {name: value}, place / "model.safetensors")
        yield f"weights: {kind}", opening(load_pretrained, place), is_sound
    content = (GOLDEN / "lm_llama" / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    entry = header[name]

    def changed(**changes: Any) -> bytes:
        text = json.dumps(header | {name: entry | changes}).encode()
        return struct.pack("<Q", len(text)) + text + data

    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    kinds = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I4", "C64", "BOOL", "?", "", 3)
    strange = {
        **{f"type {kind}": changed(dtype=kind) for kind in kinds},
        "F8 of the right size": changed(dtype="F8_E4M3", shape=[size]),
        "long header": struct.pack("<Q", 2**62) + content[8:],
        "header of 100 MB": struct.pack("<Q", 10**8 - 1) + content[8:],
        "wide": changed(shape=[2**62, 2**62]),
        "negative": changed(shape=[-1]),
        "before": changed(data_offsets=[-4, 4]),
        "behind": changed(data_offsets=[len(data), len(data) + size]),
        "overlap": changed(data_offsets=[0, size]),
        "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "no utf-8": struct.pack("<Q", 4) + b'"\xff\xfe"',
        **{f"cut at {n}": content[:n] for n in (0, 4, 8, 100, length, len(content) - 1)},
        "more bytes": content + b"\0",
    }
    for kind, changed_content in strange.items():
        place = _copy(folder / kind.replace("?", "strange"), "lm_llama")
        (place / "model.safetensors").write_bytes(changed_content)
        yield f"safetensors: {kind}", opening(load_pretrained, place), False


def _exports(folder: pathlib.Path) -> Iterator[Case]:
    """What experiments.export makes, of several exports or with strange files in it."""
    fields = files.to_json(default.get_config("gradmem").to_dict())
    for step in (1, 2):
        write_exported(
            folder / str(step),
            {"a": np.full(3, step, np.float32)},
            step,
            fields | {"seed": step},
            tokenizer=word_tokenizer([f"text {step}"]),
            lm={"model_type": f"llama {step}"},
        )
    marker = json.loads((folder / "1" / EXPORTED).read_text())

    def read(place: pathlib.Path) -> object:
        run = SavedRun(place)
        return run.fields, run.params()

    yield "export", opening(read, folder / "1"), True
    for name in (*marker["checksums"], EXPORTED):
        place = folder / f"mixed {name}".replace("/", " ")
        mixed = pathlib.Path(shutil.copytree(folder / "1", place))
        is_same = filecmp.cmp(folder / "2" / name, mixed / name, shallow=False)
        shutil.copy(folder / "2" / name, mixed / name)
        yield f"export: {name} of another one", opening(read, mixed), is_same
        for kind in _special(folder):
            place = folder / f"{name} {kind}".replace("/", " ")
            shutil.copytree(folder / "1", place)
            (place / name).unlink()
            _special(place / name)[kind]()
            yield f"export: {name}: {kind}", opening(read, place), False
    for i, changes in enumerate(
        (
            *({"step": value} for value in (None, "1", 1.5, True, [], {})),
            *({"checksums": value} for value in (3, "a", [], {}, {"a": "b"}, {"a": None})),
            {"checksums": marker["checksums"] | {"../secret": "a"}},
            {"checksums": dict.fromkeys(marker["checksums"], None)},
            {"checksums": dict.fromkeys(marker["checksums"], {})},
        )
    ):
        place = pathlib.Path(shutil.copytree(folder / "1", folder / f"changed {i}"))
        (place / EXPORTED).write_text(json.dumps(marker | changes))
        yield f"export: {changes!r:.60}", opening(read, place), False
