"""Language models and tokenizers of strangers: Hugging Face, GGUF, llama2.c, tokenizer.json."""

import json
import math
import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from gradmem_jax import load_pretrained
from gradmem_jax.tokenizers.text_tokenizer import load_tokenizer, word_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TEXT = "the cat sat on the mat. " * 20
Case = tuple[str, Callable[[], object], bool]
Edit = Callable[[pathlib.Path], object]


def cases(folder: pathlib.Path) -> Iterator[Case]:
    """Yields a name, a call that opens an input, and whether it must be accepted."""
    for part in (_hugging_face, _safetensors, _gguf, _llama2c, _tokenizer_json, _special_files):
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
                yield f"{name}: {kind}", _opening(load_tokenizer, place / name), False
            else:
                path = place / name if name in others[1:] else place
                yield f"{name}: {kind}", _opening(load_pretrained, path), False


def _copy(place: pathlib.Path, name: str) -> pathlib.Path:
    place.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name / file, place)
    return place


def _opening(read: Callable[[pathlib.Path], object], path: pathlib.Path) -> Callable[[], object]:
    return lambda: read(path)


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
        yield f"config.json: {name}", _opening(load_pretrained, place), is_sound
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
        yield f"index: {name}", _opening(load_pretrained, place), name == "sound"
    linked = folder / "linked"  # as the cache of Hugging Face's hub does
    linked.mkdir()
    for file in ("config.json", "model.safetensors"):
        (linked / file).symlink_to(GOLDEN / "lm_llama" / file)
    yield "links", _opening(load_pretrained, linked), True


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
        yield f"weights: {kind}", _opening(load_pretrained, place), is_sound
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
        yield f"safetensors: {kind}", _opening(load_pretrained, place), False


_U32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 4, 6, 7, 8, 9, 10


def _text(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content)) + content


def _number(value: int) -> tuple[int, bytes]:
    return _U32, struct.pack("<I", value)


def _texts(*texts: str) -> tuple[int, bytes]:
    parts = b"".join(map(_text, texts))
    return _ARRAY, struct.pack("<IQ", _STRING, len(texts)) + parts


_GGUF_FIELDS: dict[str | bytes, tuple[int, bytes]] = {
    "general.architecture": (_STRING, _text("llama")),
    "llama.block_count": _number(1),
    "llama.context_length": _number(8),
    "llama.embedding_length": _number(4),
    "llama.feed_forward_length": _number(4),
    "llama.attention.head_count": _number(1),
    "llama.attention.layer_norm_rms_epsilon": (_F32, struct.pack("<f", 1e-5)),
}
_SQUARE = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_GGUF_SHAPES = {
    "token_embd.weight": (4, 5),
    "output_norm.weight": (4,),
    **{f"blk.0.{name}.weight": (4, 4) for name in _SQUARE},
    **{f"blk.0.{name}.weight": (4,) for name in ("attn_norm", "ffn_norm")},
}
_TOKENS: dict[str | bytes, tuple[int, bytes]] = {
    "tokenizer.ggml.model": (_STRING, _text("llama")),
    "tokenizer.ggml.tokens": _texts("<unk>", "<s>", "</s>", "a", "\u2581"),
    "tokenizer.ggml.eos_token_id": _number(2),
}


def _gguf_file(
    fields: Mapping[str | bytes, tuple[int, bytes]],
    tensors: Mapping[str, Mapping[str, Any]] | None = None,
    counts: tuple[int | None, int | None] = (None, None),
    start: bytes = b"GGUF\3\0\0\0",
    more: bytes = b"",
) -> bytes:
    """A GGUF file; `tensors` has what is said of them in place of the truth."""
    described, offset = b"", 0
    for name, shape in _GGUF_SHAPES.items():
        said = {"shape": shape, "kind": 0, "offset": offset, "name": name}
        said |= (tensors or {}).get(name, {})
        described += _text(said["name"]) + struct.pack("<I", len(said["shape"]))
        described += struct.pack(f"<{len(said['shape'])}Q", *said["shape"])
        described += struct.pack("<IQ", said["kind"], said["offset"])
        offset += -(-4 * math.prod(shape) // 32) * 32
    num_tensors, num_fields = counts
    content = start + struct.pack(
        "<QQ",
        len(_GGUF_SHAPES) if num_tensors is None else num_tensors,
        len(fields) + bool(more) if num_fields is None else num_fields,
    )
    for field, (kind, value) in fields.items():
        content += _text(field) + struct.pack("<I", kind) + value
    content += more + described
    return content + bytes(-len(content) % 32) + b"\0\0\x80\x3f" * (offset // 4)


def _gguf(folder: pathlib.Path) -> Iterator[Case]:
    """GGUF files whose header lies."""
    norm, fields = "output_norm.weight", _GGUF_FIELDS | _TOKENS
    one = fields | {"general.alignment": _number(32)}
    contents: dict[str, tuple[bytes, bool]] = {
        "sound": (_gguf_file(fields), True),
        "sound without tokenizer": (_gguf_file(_GGUF_FIELDS), True),
        "sound alignment": (_gguf_file(one), True),
    }
    hostile = {
        **{f"tensors {n}": _gguf_file(fields, counts=(n, None)) for n in (2**40, 2**63, 13, 0)},
        **{f"fields {n}": _gguf_file(fields, counts=(None, n)) for n in (2**40, 2**63, 99, 0)},
        "version 1": _gguf_file(fields, start=b"GGUF\1\0\0\0"),
        "version 99": _gguf_file(fields, start=b"GGUF\x63\0\0\0"),
        "big-endian": _gguf_file(fields, start=b"GGUF\0\0\0\3"),
        "no GGUF": _gguf_file(fields, start=b"GGML\3\0\0\0"),
        "field twice": _gguf_file(
            fields, more=_text("llama.block_count") + struct.pack("<II", _U32, 9)
        ),
        "name that is no text": _gguf_file(fields | {b"\xff\xfe": _number(1)}),
        "long name": _gguf_file(fields, more=struct.pack("<Q", 2**62)),
    }
    for kind in (0, 1, 4, 6, 7, 8, 9, 10, 12, 13, 99, 2**32 - 1):
        for count in (2**40, 2**63, 10_000):
            array = struct.pack("<IQ", kind, count)
            hostile[f"array of {count} values of type {kind}"] = _gguf_file(
                fields | {"a": (_ARRAY, array)}
            )
        hostile[f"field of type {kind}"] = _gguf_file(fields | {"llama.block_count": (kind, b"")})
    nested = struct.pack("<IQ", _ARRAY, 1) * 5000
    hostile["nested arrays"] = _gguf_file(fields | {"a": (_ARRAY, nested)})
    for value in (0, 3, 2**31, 2**32 - 1):
        alignment = fields | {"general.alignment": _number(value)}
        hostile[f"alignment {value}"] = _gguf_file(alignment)
    hostile["alignment that is a text"] = _gguf_file(
        fields | {"general.alignment": (_STRING, _text("32"))}
    )
    for name in _GGUF_FIELDS:
        hostile[f"{name!r} is a text"] = _gguf_file(fields | {name: (_STRING, _text("\x1b[2J"))})
        hostile[f"{name!r} is a truth value"] = _gguf_file(fields | {name: (_BOOL, b"\1")})
        if "epsilon" not in str(name):
            hostile[f"{name!r} is long"] = _gguf_file(fields | {name: (_U64, b"\xff" * 8)})
        hostile[f"{name!r} is an array"] = _gguf_file(fields | {name: _texts("a", "b")})
    for name, value in {
        "tokens": _number(3),
        "tokens ": (_ARRAY, struct.pack("<IQ5I", _U32, 5, *range(5))),
        "tokens  ": _texts("a", "a", "b", "c", "d"),
        "tokens   ": _texts("<unk>", "<s>", "</s>", "a", "a" * 100_000),
        "scores": _texts(*"abcde"),
        "scores ": (_ARRAY, struct.pack("<IQ5f", _F32, 5, *[math.nan] * 5)),
        "token_type": _texts(*"abcde"),
        "eos_token_id": (_STRING, _text("a")),
        "eos_token_id ": _number(2**31),
        "model": _number(1),
        "add_space_prefix": _number(7),
    }.items():
        key = f"tokenizer.ggml.{name.strip()}"
        hostile[f"{key} {len(name)}"] = _gguf_file(fields | {key: value})
    for what, said in {
        "overlaps": {"offset": 0},
        "wraps": {"offset": 2**64 - 32},
        "is behind the file": {"offset": 2**40},
        "wide": {"shape": (2**40,)},
        "wraps in size": {"shape": (2**62, 4)},
        "wraps to its size": {"shape": (2**32, 2**32 + 4)},
        "empty": {"shape": (0,)},
        "scalar": {"shape": ()},
        "many axes": {"shape": (1,) * 1000},
        "type 4": {"kind": 4},  # one that was taken out
        "type 999": {"kind": 999},
        "type Q4_0": {"kind": 2},
        "type I32": {"kind": 26},
        "twice": {"name": "token_embd.weight"},
        "strange": {"name": "\x1b[2Jstrange"},
    }.items():
        hostile[f"tensor {what}"] = _gguf_file(fields, {norm: said})
    whole = contents["sound"][0]
    hostile |= {f"cut at {n}": whole[:n] for n in (0, 3, 8, 23, 24, 40, 500, len(whole) - 32)}
    hostile["not finite"] = whole.replace(b"\0\0\x80\x3f", b"\0\0\xc0\x7f")
    contents |= {name: (content, False) for name, content in hostile.items()}
    for i, (name, (content, is_sound)) in enumerate(contents.items()):
        path = folder / f"{i}.gguf"
        path.write_bytes(content)
        yield f"gguf: {name}", _opening(load_pretrained, path), is_sound


def _llama2c(folder: pathlib.Path) -> Iterator[Case]:
    """Models and tokenizers of llama2.c."""
    names = ("width", "mlp", "layers", "heads", "kv_heads", "vocab", "positions")
    sound = dict(zip(names, (4, 4, 2, 1, 1, 5, 8), strict=True))
    num_weights = 5 * 4 + 2 * (4 * 16 + 3 * 16 + 2 * 4) + 4 + 8 * 4

    def content(**changes: int) -> bytes:
        header = struct.pack("<7i", *(sound | changes).values())
        return header + b"\0\0\x80\x3f" * num_weights

    models = {"sound": content()}
    for name in names:
        for value in (2**31 - 1, 10**6, 0, -1, -(2**31)):
            models[f"{name}={value}"] = content(**{name: value})
    models["million layers of nothing"] = content(layers=10**6, width=2)
    models["all large"] = content(**dict.fromkeys(names, 2**31 - 1))
    models |= {f"cut at {n}": models["sound"][:n] for n in (0, 10, 28, 100)}
    models["more bytes"] = models["sound"] + b"\0\0\0\0"
    for i, (name, model) in enumerate(models.items()):
        path = folder / str(i) / "model.bin"
        path.parent.mkdir()
        path.write_bytes(model)
        yield f"llama2.c: {name}", _opening(load_pretrained, path), name == "sound"

    def tokenizer(*pieces: tuple[float, bytes]) -> bytes:
        parts = (struct.pack("<fi", score, len(piece)) + piece for score, piece in pieces)
        return struct.pack("<i", 9) + b"".join(parts)

    first = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n"), (0.0, b"a")]
    for i, (name, text) in enumerate(
        {
            "sound": tokenizer(*first),
            "twice": tokenizer(*first, (0.0, b"a")),
            "no utf-8": tokenizer(*first, (0.0, b"\xff")),
            "no score": tokenizer(*first, (math.nan, b"b")),
            "a megabyte": tokenizer(*first, (1.0, b"a" * 2**20)),
            "many long pieces": tokenizer(*first, *((1.0, b"a" * n) for n in range(2, 1500))),
            "long": tokenizer(*first) + struct.pack("<fi", 0, 2**31 - 1),
            "negative": tokenizer(*first) + struct.pack("<fi", 0, -5),
            "empty piece": tokenizer(*first, (0.0, b"")),
            "nothing": tokenizer(),
        }.items()
    ):
        path = folder / f"tok{i}.bin"
        path.write_bytes(text)
        yield f"llama2.c's tokenizer: {name}", _encoding(path), name == "sound"


def _encoding(path: pathlib.Path) -> Callable[[], object]:
    def encode() -> object:
        tokenizer = load_tokenizer(path)
        return tokenizer.decode(tokenizer.encode(TEXT))

    return encode


def _tokenizer_json(folder: pathlib.Path) -> Iterator[Case]:
    """Tokenizers that make too much of a text, or are damaged."""
    whole = json.loads(word_tokenizer([TEXT]).backend.to_str())
    vocabulary = whole["model"]["vocab"]
    long, sequence = "x" * 2**20, "Sequence"
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    growing: dict[str, Any] = {"type": sequence, "normalizers": [double] * 30}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    sound: dict[str, Mapping[str, Any]] = {
        "sound": {},
        "NFKC": {"normalizer": {"type": "NFKC"}},
        "two spaces": {
            "normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        },
        "padding": {
            "padding": {
                "strategy": {"Fixed": 10**9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            }
        },
    }
    hostile: dict[str, Mapping[str, Any]] = {
        "Replace": {"normalizer": double | {"content": long}},
        "Replace nothing": {"normalizer": double | {"pattern": {"String": ""}, "content": long}},
        "Replace by a pattern": {
            "normalizer": double | {"pattern": {"Regex": "."}, "content": "x" * 1000}
        },
        "many Replace": {"normalizer": growing},
        "many Replace inside": {
            "normalizer": {"type": sequence, "normalizers": [growing, growing]}
        },
        "Replace without a type": {"normalizer": {"pattern": {"String": "a"}, "content": long}},
        "Prepend": {"normalizer": {"type": "Prepend", "prepend": long}},
        "many NFKD": {"normalizer": {"type": sequence, "normalizers": [{"type": "NFKD"}] * 9}},
        "Precompiled": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}},
        "Precompiled, no base64": {
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "\u00e9"}
        },
        "many ByteLevel": {"pre_tokenizer": {"type": sequence, "pretokenizers": [level] * 30}},
        "decoder": {"decoder": {"type": sequence, "decoders": [double] * 30}},
        "pattern without end": {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "(?:(?:.|.){30}[0-9]|.)"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        "no pattern": {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "("},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        "added tokens with a pattern": {
            "normalizer": double | {"pattern": {"Regex": "(a|a)*b"}},
            "added_tokens": [token | {"normalized": True} for token in whole["added_tokens"]],
        },
    }
    for what, changes in {
        "negative id": {"vocab": vocabulary | {"a": -1}},
        "large id": {"vocab": vocabulary | {"a": 2**31}},
        "larger id": {"vocab": vocabulary | {"a": 2**40}},
        "id twice": {"vocab": vocabulary | {"cat": vocabulary["sat"]}},
        "list": {"vocab": [1, 2]},
        "number": {"vocab": 3},
        "no unknown token": {"unk_token": "none", "vocab": {"[PAD]": 0, "[END]": 1, "the": 2}},
        "long pieces": {"vocab": vocabulary | {"a" * 20_000: 900}},
        "WordPiece": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 10**9,
        },
        "prefix": {
            "type": "BPE",
            "merges": [],
            "continuing_subword_prefix": long,
        },
        "merge of nothing": {"type": "BPE", "merges": [["x", "y"]]},
        "merge with a prefix": {
            "type": "BPE",
            "merges": [["a", "b"]],
            "vocab": vocabulary | {"a": 900, "b": 901, "ab": 902},
            "continuing_subword_prefix": "#" * 10,
        },
        "unknown type": {"type": "strange"},
        "no type": {"type": None},
    }.items():
        hostile[f"model: {what}"] = {"model": whole["model"] | changes}
    for key in ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        for value in (3, "a", [3], {"type": 3}, {"type": "strange"}):
            hostile[f"{key}={value}"] = {key: value}
    for i, (name, part) in enumerate((sound | hostile).items()):
        path = folder / f"{i}.json"
        path.write_text(json.dumps(whole | part))
        yield f"tokenizer.json: {name}", _encoding(path), name in sound
    for i, (name, files) in enumerate(
        {
            "merges that are a FIFO": {"vocab.json": b'{"<|endoftext|>": 0}'},
            "vocabulary that is a list": {"vocab.json": b"[]", "merges.txt": b""},
            "large id": {"vocab.json": b'{"<|endoftext|>": 4000000000}', "merges.txt": b""},
            "merge of nothing": {"vocab.json": b'{"<|endoftext|>": 0}', "merges.txt": b"a b\n"},
            "merge of one": {"vocab.json": b'{"<|endoftext|>": 0}', "merges.txt": b"a\n"},
            "no utf-8": {"vocab.json": b'{"<|endoftext|>": 0}', "merges.txt": b"\xff \xfe\n"},
        }.items()
    ):
        place = folder / f"parts{i}"
        place.mkdir()
        for file, content in files.items():
            (place / file).write_bytes(content)
        if "merges.txt" not in files:
            os.mkfifo(place / "merges.txt")
        yield f"vocab.json: {name}", _encoding(place), False
