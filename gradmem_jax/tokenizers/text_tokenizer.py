"""Tokenizers of natural language: words, and what pretrained models come with."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gradmem_jax.checks import require, require_path
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage.reading import LARGEST_JSON, parse_json, read_json, read_text
from gradmem_jax.storage.writing import write_text
from gradmem_jax.tokenizers.bounds import (
    EVERY_CHARACTER,
    Watch,
    check_content,
    check_ids,
    check_pieces,
    check_size,
    limited,
)
from gradmem_jax.tokenizers.files import (
    read_gguf_tokenizer,
    read_llama2c_tokenizer,
)
from gradmem_jax.tokenizers.gguf_reader import open_gguf_file

PAD, END, UNKNOWN = "[PAD]", "[END]", "[UNK]"
_PAD_NAMES = (PAD, "<pad>", "<|endoftext|>", "<|end_of_text|>", "</s>")
_END_NAMES = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>")


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer of the library `tokenizers`, with the ids that this library needs.

    Attributes:
        backend: the tokenizer; it adds no special tokens.
        pad_id: the id that fills contexts and queries; it stands for no text.
        end_id: the id that ends an answer.
        watch: what of its work is watched, if it is a stranger's.
    """

    backend: tokenizers.Tokenizer
    pad_id: int
    end_id: int
    watch: Watch = Watch()

    @property
    def vocab_size(self) -> int:
        """V, the largest id and one: ids that no token has count too."""
        return self._vocab_size

    @functools.cached_property
    def _vocab_size(self) -> int:
        return max(self.backend.get_vocab().values(), default=-1) + 1

    @functools.cached_property
    def token_ids(self) -> np.ndarray:
        """The ids that have a token, int64 [n], ascending."""
        return np.unique(np.array([*self.backend.get_vocab().values()], np.int64))

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 [n].

        Raises:
            ValueError: the tokenizer fails, takes too long, or makes too much of the text.
        """
        return np.array(self._encoding(text).ids, np.int32)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int32 [n], and int32 [n, 2], from where to where in the text they stand."""
        encoding = self._encoding(text)
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        return np.array(encoding.ids, np.int32), offsets

    def _encoding(self, text: str) -> Any:
        if self.watch.size:
            check_size(self.backend.normalizer, text)

        def encode() -> Any:
            if self.watch.time:  # of a batch other threads run meanwhile
                return self.backend.encode_batch([text], add_special_tokens=False)[0]
            return self.backend.encode(text, add_special_tokens=False)

        return limited(encode, "cut a text", len(text), self.watch.time)

    def unknown(self, text: str) -> list[str]:
        """Returns the words of a text that become the token of unknown ones, if there is one."""
        name = getattr(self.backend.model, "unk_token", None)
        if name is None:
            return []
        unknown_id = self.backend.token_to_id(name)
        ids, offsets = self.encode_with_offsets(text)
        return [text[slice(*span)] for i, span in zip(ids, offsets, strict=True) if i == unknown_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, special ones left out.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            require(
                0 <= i < self.vocab_size, f"id {i} is not in the vocabulary [0, {self.vocab_size})."
            )
        kept = [i for i in ids if i not in (self.pad_id, self.end_id)]

        def decode() -> str:
            if self.watch.time:
                return self.backend.decode_batch([kept], skip_special_tokens=True)[0]
            return self.backend.decode(kept, skip_special_tokens=True)

        return limited(decode, "join the pieces", len(kept), self.watch.time)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the tokenizer to a file `tokenizer.json`, which `load_tokenizer` reads."""
        write_text(path, self.backend.to_str(pretty=True))


def _find_id(backend: tokenizers.Tokenizer, names: Iterable[str], what: str) -> int:
    names = tuple(names)
    for name in names:
        found = backend.token_to_id(name)
        if found is not None:
            return found
    raise ValueError(f"the tokenizer has none of {names} as its {what} token; name one.")


def wrap_tokenizer(
    backend: tokenizers.Tokenizer, *, pad_token: str = "", end_token: str = ""
) -> TextTokenizer:
    """Finds the special ids of a tokenizer.

    Args:
        backend: the tokenizer.
        pad_token: what fills contexts; by default one of the usual names.
        end_token: what ends an answer; by default one of the usual names.

    Raises:
        ValueError: there is no such token, two tokens have one id, or ids have large gaps.
    """
    check_ids(backend.get_vocab().values())
    pad_id = _find_id(backend, [pad_token] if pad_token else _PAD_NAMES, "padding")
    end_id = _find_id(backend, [end_token] if end_token else _END_NAMES, "end")
    backend.no_padding()
    backend.no_truncation()
    return TextTokenizer(backend, pad_id, end_id)


def word_tokenizer(texts: Iterable[str], lowercase: bool = False) -> TextTokenizer:
    """Makes a tokenizer whose ids are the words and punctuation marks of some texts.

    Args:
        texts: where the words come from; ids follow their alphabet, not their order.
        lowercase: whether upper case is dropped.
    """
    backend = tokenizers.Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Whitespace()
    backend.pre_tokenizer = split
    normalize: Any = backend.normalizer.normalize_str if lowercase else str
    words = {word for text in texts for word, _ in split.pre_tokenize_str(normalize(text))}
    vocabulary = {word: i for i, word in enumerate([PAD, END, UNKNOWN, *sorted(words)])}
    backend.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    backend.add_special_tokens([PAD, END, UNKNOWN])
    return wrap_tokenizer(backend)


def character_tokenizer(texts: Iterable[str]) -> TextTokenizer:
    """Makes a tokenizer whose ids are the characters of some texts, in alphabetical order."""
    characters = sorted(set("".join(texts)))
    vocabulary = {name: i for i, name in enumerate([PAD, END, UNKNOWN, *characters])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(EVERY_CHARACTER), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([PAD, END, UNKNOWN])
    return wrap_tokenizer(backend)


def _special_tokens(file: pathlib.Path) -> dict[str, str]:
    """What a tokenizer_config.json of Hugging Face, if there is one, calls padding and end."""
    if not os.path.lexists(file):
        return {}
    content = read_json(file, "configuration of a tokenizer")
    require(isinstance(content, dict), f"{file} is damaged: it holds no object.")
    special = {}
    for ours, theirs in (("pad_token", "pad_token"), ("end_token", "eos_token")):
        token = content.get(theirs)
        name = token.get("content") if isinstance(token, dict) else token
        require(
            name is None or isinstance(name, str),
            f"{file} is damaged: {theirs}={shown(token)} is no name of a token.",
        )
        if name:
            special[ours] = name
    return special


def _read_folder_or_json(path: pathlib.Path) -> TextTokenizer:
    """Reads a tokenizer.json, or a folder with one or with vocab.json and merges.txt."""
    file = path / "tokenizer.json" if path.is_dir() else path
    special = _special_tokens(path / "tokenizer_config.json") if path.is_dir() else {}
    if os.path.lexists(file):
        text = read_text(file, "tokenizer", LARGEST_JSON)
        watch = check_content(parse_json(text, f"{file}, a tokenizer,"))
        backend = limited(lambda: tokenizers.Tokenizer.from_str(text), "be read", len(text))
        tokenizer = wrap_tokenizer(backend, **special)
        return dataclasses.replace(tokenizer, watch=watch)
    vocabulary, merges = path / "vocab.json", path / "merges.txt"
    require(
        os.path.lexists(vocabulary) and os.path.lexists(merges),
        "it holds no tokenizer: give a tokenizer.json, a folder with one or with vocab.json and "
        "merges.txt, a .gguf file, or a tok*.bin of llama2.c",
    )
    pieces = read_json(vocabulary, "vocabulary")
    require(isinstance(pieces, dict), f"{vocabulary} is damaged: it holds no object")
    check_pieces(pieces)
    read_text(merges, "list of merges", LARGEST_JSON)
    files = str(vocabulary), str(merges)
    backend = tokenizers.Tokenizer(limited(lambda: models.BPE.from_file(*files), "be read", 0))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return wrap_tokenizer(backend, **special)


def _tokenizer_of_llama2c(path: pathlib.Path) -> pathlib.Path:
    """The file itself, or the one beside a model."""
    files = [path] if path.name.startswith("tok") else sorted(path.parent.glob("tok*.bin"))
    require(
        len(files) == 1,
        f"{[file.name for file in files]} stand beside {path}, not one tokenizer tok*.bin; name "
        "the one to use.",
    )
    return files[0]


def load_tokenizer(path: str | pathlib.Path) -> TextTokenizer:
    """Reads a tokenizer from disk.

    Args:
        path: a `tokenizer.json`, or a folder with one or with `vocab.json` and `merges.txt`
            (GPT-2); if the folder has a `tokenizer_config.json`, that names the special tokens. A
            `.gguf` file, or a folder with exactly one. A tokenizer `tok*.bin` of llama2.c, or a
            model `.bin` with one beside it.

    Raises:
        ValueError: there is no tokenizer, or it is damaged.
    """
    path = require_path("path", path)
    require(os.path.exists(path), f"there is no tokenizer {path}; give a file or a folder.")
    has_own = any((path / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    if path.is_dir() and not has_own and len(files := list(path.glob("*.gguf"))) == 1:
        (path,) = files
    if path.suffix == ".gguf" and path.is_file():
        file = read_gguf_tokenizer(open_gguf_file(path).fields, path)
        return wrap_tokenizer(**file._asdict())
    if path.suffix == ".bin" and path.is_file():
        file = read_llama2c_tokenizer(_tokenizer_of_llama2c(path))
        return wrap_tokenizer(**file._asdict())
    try:
        return _read_folder_or_json(path)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(f"cannot read a tokenizer from {path}: {error}") from error
