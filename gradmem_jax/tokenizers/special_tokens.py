"""What a tokenizer's folder of Hugging Face's says of special and added tokens."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import tokenizers

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage.reading import read_json

# The same in both files; what the first one names counts.
_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_KEYS = {"pad": "pad_token", "end": "eos_token", "begin": "bos_token", "unknown": "unk_token"}


class SpecialTokens(NamedTuple):
    """The names of special tokens, "" where none is named.

    Attributes:
        pad: what fills contexts.
        end: what ends a text.
        begin: what a text begins with.
        unknown: what stands for text without a token.
        adds_begin: whether `begin` is put in front of texts; None if that is not said.
        kind: the class of the tokenizer in transformers.
    """

    pad: str = ""
    end: str = ""
    begin: str = ""
    unknown: str = ""
    adds_begin: bool | None = None
    kind: str = ""


def read_special_tokens(folder: pathlib.Path) -> SpecialTokens:
    """Reads the names in tokenizer_config.json and special_tokens_map.json, if they are there.

    Raises:
        ValueError: a file is damaged.
    """
    found: dict[str, str] = {}
    adds_begin = None
    for name in _FILES:
        content = _read_object(folder / name)
        for ours, theirs in _KEYS.items():
            token = content.get(theirs)
            token = token.get("content") if isinstance(token, dict) else token
            require(
                token is None or isinstance(token, str),
                f"{folder / name} is damaged: {theirs}={shown(token)} is no name of a token.",
            )
            if token:
                found.setdefault(ours, token)
        said = content.get("add_bos_token")
        require(
            said is None or isinstance(said, bool),
            f"{folder / name} is damaged: add_bos_token={shown(said)} is no truth value.",
        )
        adds_begin = said if adds_begin is None else adds_begin
    kind = _read_object(folder / _FILES[0]).get("tokenizer_class")
    return SpecialTokens(**found, adds_begin=adds_begin, kind=str(kind or ""))


def add_tokens(backend: tokenizers.Tokenizer, folder: pathlib.Path) -> None:
    """Gives a tokenizer the tokens of added_tokens.json and of `added_tokens_decoder`.

    A tokenizer.json has its own; those of other files get the ids that are written here.

    Args:
        backend: the tokenizer.
        folder: where the files are, if there are any.

    Raises:
        ValueError: a file is damaged, or leaves ids between the tokens out.
    """
    tokens = dict(_added_tokens(folder))
    for i in sorted(tokens):
        token = tokens[i]
        add = backend.add_special_tokens if token.special else backend.add_tokens
        add([token])
        got = backend.token_to_id(token.content)
        require(
            got == i,
            f"{folder} adds the token {shown(token.content)} with the id {i}, and its place is "
            f"{got}; number added tokens without gaps, behind the others.",
        )


def _added_tokens(folder: pathlib.Path) -> Iterator[tuple[int, tokenizers.AddedToken]]:
    named = set(read_special_tokens(folder)[:4])
    file = folder / "added_tokens.json"
    for content, i in _read_object(file).items():
        require(type(i) is int and i >= 0, f"{file} is damaged: {shown(i)} is no id.")
        yield i, tokenizers.AddedToken(content, special=content in named, normalized=False)
    file = folder / _FILES[0]
    decoder = _read_object(file).get("added_tokens_decoder") or {}
    require(isinstance(decoder, dict), f"{file} is damaged: added_tokens_decoder is no object.")
    for number, fields in decoder.items():
        require(
            number.isdecimal() and isinstance(fields, dict),
            f"{file} is damaged: added_tokens_decoder has {shown(number)}, which is no id.",
        )
        yield int(number), _token(file, fields)


def _token(file: pathlib.Path, fields: dict[str, Any]) -> tokenizers.AddedToken:
    switches = ("single_word", "lstrip", "rstrip", "normalized", "special")
    values = {name: fields.get(name, False) for name in switches}
    content = fields.get("content")
    require(
        isinstance(content, str)
        and bool(content)
        and all(isinstance(value, bool) for value in values.values()),
        f"{file} is damaged: {shown(fields)} is no token.",
    )
    return tokenizers.AddedToken(content, **values)


def _read_object(file: pathlib.Path) -> dict[str, Any]:
    """What a file holds, nothing if it is not there."""
    if not os.path.lexists(file):
        return {}
    content = read_json(file, "description of tokens")
    require(isinstance(content, dict), f"{file} is damaged: it holds no object.")
    return content
