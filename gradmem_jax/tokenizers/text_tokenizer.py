"""Tokenizers of natural language: words, and what pretrained models come with."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import tokenizers
from absl import logging
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
from gradmem_jax.tokenizers.fetch import local_tokenizer
from gradmem_jax.tokenizers.files import (
    TokenizerFile,
    byte_level,
    read_gguf_tokenizer,
    read_llama2c_tokenizer,
)
from gradmem_jax.tokenizers.gguf_reader import first_parts, open_gguf_file
from gradmem_jax.tokenizers.sentencepiece_file import read_sentencepiece
from gradmem_jax.tokenizers.special_tokens import SpecialTokens, add_tokens, read_special_tokens

HUGGING_FACE = ("tokenizer.json", "vocab.json", "tokenizer.model")  # the first of them is read
# Tokenizers of vocab.json and merges.txt, and how they split text, as `byte_level` calls it.
BYTE_LEVEL_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
_UNNAMED = SpecialTokens()
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
        begin_id: the id that texts begin with, if the model was trained so; see `encode_start`.
            If it is `pad_id` too, it is not put in front: what fills contexts stands for nothing.

    Examples:
        >>> from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer
        >>> tokenizer = word_tokenizer(["Mary went home ."])
        >>> ids = tokenizer.encode("Mary went home .")
        >>> tokenizer.decode(ids), tokenizer.vocab_size
        ('Mary went home .', 7)
    """

    backend: tokenizers.Tokenizer
    pad_id: int
    end_id: int
    watch: Watch = Watch()
    begin_id: int | None = None

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

    def encode_start(self, text: str) -> np.ndarray:
        """Returns the ids of a text that nothing stands before: `begin_ids` are first."""
        return np.concatenate([self.begin_ids, self.encode(text)])

    @property
    def begin_ids(self) -> np.ndarray:
        """What `encode_start` puts in front, int32 [0] or [1]; never `pad_id`."""
        if self.begin_id is not None and self.begin_id == self.pad_id:
            logging.log_first_n(
                logging.WARNING,
                "the token %s fills contexts, so texts do not begin with it, as the tokenizer's "
                "files say they do; name another token that fills contexts with pad_token.",
                1,
                shown(self.backend.id_to_token(self.pad_id)),
            )
            return np.zeros(0, np.int32)
        return np.array([] if self.begin_id is None else [self.begin_id], np.int32)

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
        kept = [i for i in ids if i not in (self.pad_id, self.end_id, self.begin_id)]

        def decode() -> str:
            if self.watch.time:
                return self.backend.decode_batch([kept], skip_special_tokens=True)[0]
            return self.backend.decode(kept, skip_special_tokens=True)

        return limited(decode, "join the pieces", len(kept), self.watch.time)

    def with_padding(self, token: str) -> "TextTokenizer":
        """Returns the tokenizer with another token that fills contexts.

        Raises:
            ValueError: it has no such token.
        """
        return dataclasses.replace(self, pad_id=_find_id(self.backend, [token], "padding"))

    def fitting(self, num_rows: int) -> "TextTokenizer":
        """Returns the tokenizer for a model of some rows.

        Tokens that were added to it, and never to the model, such as a `<pad>`, are left out if all
        that have no row are of that kind; `vocab_size` tells.
        """
        pieces = self.backend.get_vocab(with_added_tokens=False).values()
        if self.vocab_size <= num_rows or max([self.end_id, *pieces]) >= num_rows:
            return self
        content = json.loads(self.backend.to_str())
        added = [token for token in content["added_tokens"] if token["id"] < num_rows]
        backend = tokenizers.Tokenizer.from_str(json.dumps(content | {"added_tokens": added}))
        begin = self.begin_id if self.begin_id is None or self.begin_id < num_rows else None
        pad_id = self.pad_id
        if pad_id >= num_rows:
            unknown = backend.token_to_id(getattr(backend.model, "unk_token", None) or "<unk>")
            pad_id = self.end_id if unknown is None else unknown
        return TextTokenizer(backend, pad_id, self.end_id, self.watch, begin)

    @property
    def config(self) -> dict[str, Any]:
        """What tokenizer_config.json says of it, beside what `save` writes."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        ids = {"eos_token": self.end_id, "pad_token": self.pad_id, "bos_token": self.begin_id}
        config |= {name: self.backend.id_to_token(i) for name, i in ids.items() if i is not None}
        return config | {"add_bos_token": self.begin_id is not None}  # whatever the template says

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
    backend: tokenizers.Tokenizer,
    *,
    pad_token: str = "",
    end_token: str = "",
    special: SpecialTokens = _UNNAMED,
) -> TextTokenizer:
    """Finds the special ids of a tokenizer.

    Args:
        backend: the tokenizer.
        pad_token: what fills contexts; by default what `special` names, else one of the usual
            names, else the token of unknown text, else the one that ends a text.
        end_token: what ends an answer; by default what `special` names, else a usual name.
        special: what the tokenizer's files name.

    Raises:
        ValueError: there is no such token, two tokens have one id, or ids have large gaps.
    """
    check_ids(backend.get_vocab().values())
    backend.no_padding()
    backend.no_truncation()
    end_names = [end_token or special.end] if end_token or special.end else _END_NAMES
    end_id = _find_id(backend, end_names, "end")
    unknown = special.unknown or getattr(backend.model, "unk_token", None) or "<unk>"
    end = str(backend.id_to_token(end_id))
    usual = [special.pad] if special.pad else list(_PAD_NAMES)
    pad_id = _find_id(backend, [pad_token] if pad_token else [*usual, unknown, end], "padding")
    return TextTokenizer(backend, pad_id, end_id, begin_id=_begin_id(backend, special))


def wrap_file(file: TokenizerFile) -> TextTokenizer:
    """Finds the special ids of a tokenizer in a file of another kind; see `wrap_tokenizer`."""
    special = SpecialTokens(pad=file.pad_token, end=file.end_token)
    return wrap_tokenizer(file.backend, special=special)


def _begin_id(backend: tokenizers.Tokenizer, special: SpecialTokens) -> int | None:
    """The id that texts begin with: as the files say, else as the tokenizer itself does it."""
    if special.adds_begin is not None and (special.begin or not special.adds_begin):
        return backend.token_to_id(special.begin) if special.adds_begin else None
    if backend.post_processor is None:
        return None
    text = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).encode("a")
    ready = limited(lambda: backend.post_processor.process(text), "put tokens around a text", 1)
    is_special = bool(ready.ids) and ready.sequence_ids[0] is None
    return ready.ids[0] if is_special and backend.id_to_token(ready.ids[0]) else None


def word_tokenizer(texts: Iterable[str], lowercase: bool = False) -> TextTokenizer:
    """Makes a tokenizer whose ids are the words and punctuation marks of some texts.

    Args:
        texts: where the words come from; ids follow their alphabet, not their order.
        lowercase: whether upper case is dropped.

    Examples:
        >>> from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer
        >>> word_tokenizer(["Tea is hot ."]).encode("hot Tea").tolist()
        [5, 4]
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
    """Makes a tokenizer whose ids are the characters of some texts, in alphabetical order.

    Examples:
        >>> from gradmem_jax.tokenizers.text_tokenizer import character_tokenizer
        >>> character_tokenizer(["abc"]).encode("cab").tolist()
        [5, 3, 4]
    """
    characters = sorted(set("".join(texts)))
    vocabulary = {name: i for i, name in enumerate([PAD, END, UNKNOWN, *characters])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(EVERY_CHARACTER), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([PAD, END, UNKNOWN])
    return wrap_tokenizer(backend)


def _read_folder_or_json(path: pathlib.Path) -> TextTokenizer:
    """Reads a tokenizer.json, a tokenizer.model, or a folder with one or with GPT-2's files."""
    is_folder = path.is_dir()
    here = [path / name for name in HUGGING_FACE if os.path.lexists(path / name)]
    file = here[0] if here else path
    special = read_special_tokens(path) if is_folder else SpecialTokens()
    watch = Watch()
    if file.name == "vocab.json":
        backend = _read_byte_level(path, special.kind)
    elif file.suffix == ".model":
        read = read_sentencepiece(file)
        backend = read.backend
        special = special._replace(
            pad=special.pad or read.pad_token, end=special.end or read.end_token
        )
    else:
        require(
            file.is_file(),
            "it holds no tokenizer: give a tokenizer.json, a tokenizer.model of SentencePiece, a "
            "folder with one or with vocab.json and merges.txt, a .gguf file, or a tok*.bin of "
            "llama2.c",
        )
        text = read_text(file, "tokenizer", LARGEST_JSON)
        watch = check_content(parse_json(text, f"{file}, a tokenizer,"))
        backend = limited(lambda: tokenizers.Tokenizer.from_str(text), "be read", len(text))
    if is_folder and file.name != "tokenizer.json":
        add_tokens(backend, path)
    tokenizer = dataclasses.replace(wrap_tokenizer(backend, special=special), watch=watch)
    config = path / "config.json"
    if is_folder and config.is_file():
        content = read_json(config, "configuration of a language model")
        num_rows = content.get("vocab_size") if isinstance(content, dict) else None
        return tokenizer.fitting(num_rows) if type(num_rows) is int else tokenizer
    return tokenizer


def _read_byte_level(folder: pathlib.Path, kind: str) -> tokenizers.Tokenizer:
    """Reads vocab.json and merges.txt; the class of the tokenizer says how text is split before."""
    kind = (kind or "GPT2Tokenizer").removesuffix("Fast")
    require(
        kind in BYTE_LEVEL_CLASSES,
        f"its vocab.json is of a {shown(kind)}, and only {', '.join(BYTE_LEVEL_CLASSES)} are read "
        "from there; get its tokenizer.json",
    )
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    pieces = read_json(vocabulary, "vocabulary")
    require(isinstance(pieces, dict), f"{vocabulary} is damaged: it holds no object")
    check_pieces(pieces)
    lines = read_text(merges, "list of merges", LARGEST_JSON).splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    require(all(len(pair) == 2 for pair in pairs), f"{merges} is damaged: a line is no pair")
    merged = [(left, right) for left, right in pairs]
    backend = limited(lambda: byte_level(pieces, merged, BYTE_LEVEL_CLASSES[kind]), "be read", 0)
    backend.add_special_tokens(["<|endoftext|>"])
    return backend


def _tokenizer_of_llama2c(path: pathlib.Path) -> pathlib.Path:
    """The file itself, or the one beside a model."""
    files = [path] if path.name.startswith("tok") else sorted(path.parent.glob("tok*.bin"))
    require(
        len(files) == 1,
        f"{[file.name for file in files]} stand beside {path}, not one tokenizer tok*.bin; name "
        "the one to use.",
    )
    return files[0]


def load_tokenizer(path: str | pathlib.Path, *, pad_token: str = "") -> TextTokenizer:
    """Reads a tokenizer from disk or a hub.

    Args:
        path: a `tokenizer.json`, a `tokenizer.model` of SentencePiece, or a folder with one of
            them or with `vocab.json` and `merges.txt` (GPT-2). The `tokenizer_config.json`,
            `special_tokens_map.json` and `added_tokens.json` beside it say more of its tokens. A
            `.gguf` file, or a folder with exactly one. A tokenizer `tok*.bin` of llama2.c, or a
            model `.bin` with one beside it. Where there is no such path, a name on the hub of
            Hugging Face, see `load_pretrained`.
        pad_token: what fills contexts; by default what the files name, else one of the usual
            names, else the token of unknown text, else the one that ends a text.

    Raises:
        ValueError: there is no tokenizer, or it is damaged.

    Examples:
        >>> from gradmem_jax.tokenizers.text_tokenizer import load_tokenizer, word_tokenizer
        >>> word_tokenizer(["Tea is hot ."]).backend.save("tokenizer.json")
        >>> load_tokenizer("tokenizer.json").encode("Tea is hot .").dtype
        dtype('int32')
    """
    path = local_tokenizer(require_path("path", path))
    require(os.path.exists(path), f"there is no tokenizer {path}; give a file or a folder.")
    tokenizer = _read(path)
    return tokenizer.with_padding(pad_token) if pad_token else tokenizer


def _read(path: pathlib.Path) -> TextTokenizer:
    has_own = any((path / name).is_file() for name in HUGGING_FACE)
    if path.is_dir() and not has_own and len(files := first_parts(path.glob("*.gguf"))) == 1:
        (path,) = files
    if path.suffix == ".gguf" and path.is_file():
        file = read_gguf_tokenizer(open_gguf_file(path).fields, path)
        return wrap_file(file)
    if path.suffix == ".bin" and path.is_file():
        file = read_llama2c_tokenizer(_tokenizer_of_llama2c(path))
        return wrap_file(file)
    try:
        return _read_folder_or_json(path)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(f"cannot read a tokenizer from {path}: {error}") from error
