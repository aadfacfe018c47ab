"""GGUF and llama2.c files that lie about what they hold."""

import math
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from gradmem_jax import load_pretrained
from tests.hostile.opening import Case, encoding, opening

_U32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 4, 6, 7, 8, 9, 10


def _text(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content)) + content


def _number(value: int) -> tuple[int, bytes]:
    return _U32, struct.pack("<I", value)


def _texts(*texts: str) -> tuple[int, bytes]:
    parts = b"".join(map(_text, texts))
    return _ARRAY, struct.pack("<IQ", _STRING, len(texts)) + parts


FIELDS: dict[str | bytes, tuple[int, bytes]] = {
    "general.architecture": (_STRING, _text("llama")),
    "llama.block_count": _number(1),
    "llama.context_length": _number(8),
    "llama.embedding_length": _number(4),
    "llama.feed_forward_length": _number(4),
    "llama.attention.head_count": _number(1),
    "llama.attention.layer_norm_rms_epsilon": (_F32, struct.pack("<f", 1e-5)),
}
_SQUARE = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_SHAPES = {
    "token_embd.weight": (4, 5),
    "output_norm.weight": (4,),
    **{f"blk.0.{name}.weight": (4, 4) for name in _SQUARE},
    **{f"blk.0.{name}.weight": (4,) for name in ("attn_norm", "ffn_norm")},
}
TOKENS: dict[str | bytes, tuple[int, bytes]] = {
    "tokenizer.ggml.model": (_STRING, _text("llama")),
    "tokenizer.ggml.tokens": _texts("<unk>", "<s>", "</s>", "a", "\u2581"),
    "tokenizer.ggml.eos_token_id": _number(2),
}


def gguf_file(
    fields: Mapping[str | bytes, tuple[int, bytes]],
    tensors: Mapping[str, Mapping[str, Any]] | None = None,
    counts: tuple[int | None, int | None] = (None, None),
    start: bytes = b"GGUF\3\0\0\0",
    more: bytes = b"",
) -> bytes:
    """A GGUF file; `tensors` has what is said of them in place of the truth."""
    described, offset = b"", 0
    for name, shape in _SHAPES.items():
        said = {"shape": shape, "kind": 0, "offset": offset, "name": name}
        said |= (tensors or {}).get(name, {})
        described += _text(said["name"]) + struct.pack("<I", len(said["shape"]))
        described += struct.pack(f"<{len(said['shape'])}Q", *said["shape"])
        described += struct.pack("<IQ", said["kind"], said["offset"])
        offset += -(-4 * math.prod(shape) // 32) * 32
    num_tensors, num_fields = counts
    content = start + struct.pack(
        "<QQ",
        len(_SHAPES) if num_tensors is None else num_tensors,
        len(fields) + bool(more) if num_fields is None else num_fields,
    )
    for field, (kind, value) in fields.items():
        content += _text(field) + struct.pack("<I", kind) + value
    content += more + described
    return content + bytes(-len(content) % 32) + b"\0\0\x80\x3f" * (offset // 4)


def gguf(folder: pathlib.Path) -> Iterator[Case]:
    """GGUF files whose header lies."""
    norm, fields = "output_norm.weight", FIELDS | TOKENS
    one = fields | {"general.alignment": _number(32)}
    contents: dict[str, tuple[bytes, bool]] = {
        "sound": (gguf_file(fields), True),
        "sound without tokenizer": (gguf_file(FIELDS), True),
        "sound alignment": (gguf_file(one), True),
    }
    hostile = {
        **{f"tensors {n}": gguf_file(fields, counts=(n, None)) for n in (2**40, 2**63, 13, 0)},
        **{f"fields {n}": gguf_file(fields, counts=(None, n)) for n in (2**40, 2**63, 99, 0)},
        "version 1": gguf_file(fields, start=b"GGUF\1\0\0\0"),
        "version 99": gguf_file(fields, start=b"GGUF\x63\0\0\0"),
        "big-endian": gguf_file(fields, start=b"GGUF\0\0\0\3"),
        "no GGUF": gguf_file(fields, start=b"GGML\3\0\0\0"),
        "field twice": gguf_file(
            fields, more=_text("llama.block_count") + struct.pack("<II", _U32, 9)
        ),
        "name that is no text": gguf_file(fields | {b"\xff\xfe": _number(1)}),
        "long name": gguf_file(fields, more=struct.pack("<Q", 2**62)),
    }
    for kind in (0, 1, 4, 6, 7, 8, 9, 10, 12, 13, 99, 2**32 - 1):
        for count in (2**40, 2**63, 10_000):
            array = struct.pack("<IQ", kind, count)
            hostile[f"array of {count} values of type {kind}"] = gguf_file(
                fields | {"a": (_ARRAY, array)}
            )
        hostile[f"field of type {kind}"] = gguf_file(fields | {"llama.block_count": (kind, b"")})
    nested = struct.pack("<IQ", _ARRAY, 1) * 5000
    hostile["nested arrays"] = gguf_file(fields | {"a": (_ARRAY, nested)})
    for value in (0, 3, 2**31, 2**32 - 1):
        alignment = fields | {"general.alignment": _number(value)}
        hostile[f"alignment {value}"] = gguf_file(alignment)
    hostile["alignment that is a text"] = gguf_file(
        fields | {"general.alignment": (_STRING, _text("32"))}
    )
    for name in FIELDS:
        hostile[f"{name!r} is a text"] = gguf_file(fields | {name: (_STRING, _text("\x1b[2J"))})
        hostile[f"{name!r} is a truth value"] = gguf_file(fields | {name: (_BOOL, b"\1")})
        if "epsilon" not in str(name):
            hostile[f"{name!r} is long"] = gguf_file(fields | {name: (_U64, b"\xff" * 8)})
        hostile[f"{name!r} is an array"] = gguf_file(fields | {name: _texts("a", "b")})
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
        hostile[f"{key} {len(name)}"] = gguf_file(fields | {key: value})
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
        hostile[f"tensor {what}"] = gguf_file(fields, {norm: said})
    whole = contents["sound"][0]
    hostile |= {f"cut at {n}": whole[:n] for n in (0, 3, 8, 23, 24, 40, 500, len(whole) - 32)}
    hostile["not finite"] = whole.replace(b"\0\0\x80\x3f", b"\0\0\xc0\x7f")
    contents |= {name: (content, False) for name, content in hostile.items()}
    for i, (name, (content, is_sound)) in enumerate(contents.items()):
        path = folder / f"{i}.gguf"
        path.write_bytes(content)
        yield f"gguf: {name}", opening(load_pretrained, path), is_sound


def llama2c(folder: pathlib.Path) -> Iterator[Case]:
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
        yield f"llama2.c: {name}", opening(load_pretrained, path), name == "sound"

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
        yield f"llama2.c's tokenizer: {name}", encoding(path), name == "sound"
