"""Files of tokenizers that are damaged or make too much of a text."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer
from tests.hostile.opening import TEXT, Case, encoding


def tokenizer_json(folder: pathlib.Path) -> Iterator[Case]:
    """Tokenizers that make too much of a text, or are damaged."""
    whole = json.loads(word_tokenizer([TEXT]).backend.to_str())
    vocabulary = whole["model"]["vocab"]
    long, sequence = "x" * 2**20, "Sequence"
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    growing: dict[str, Any] = {"type": sequence, "normalizers": [double] * 30}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    sound: dict[str, Mapping[str, Any]] = {
        "sound": {},
        "NFKD": {"normalizer": {"type": sequence, "normalizers": [{"type": "NFKD"}] * 9}},
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
        "many Replace and NFKD": {
            "normalizer": {"type": sequence, "normalizers": [double, {"type": "NFKD"}] * 9}
        },
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
        yield f"tokenizer.json: {name}", encoding(path), name in sound
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
        yield f"vocab.json: {name}", encoding(place), False
