"""The tokenizer.model of SentencePiece, read strictly: Llama 2, Mistral, Gemma and others."""

import base64
import enum
import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage.reading import LARGEST_JSON, read_bytes
from gradmem_jax.tokenizers.bounds import SPACES_AROUND, check_charsmap, check_pieces
from gradmem_jax.tokenizers.files import SPACE, TokenizerFile, add_begin, scored_bpe

_UNIGRAM, _BPE = 1, 2
_LONGEST_PIECE = 1000  # bytes


class _Kind(enum.IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class _Pieces(NamedTuple):
    """The pieces in the order of their ids."""

    texts: list[str]
    scores: list[float]
    kinds: list[_Kind]

    def of(self, kind: _Kind) -> list[str]:
        """The texts of a kind."""
        return [text for text, own in zip(self.texts, self.kinds, strict=True) if own == kind]


def read_sentencepiece(path: pathlib.Path) -> TokenizerFile:
    """Reads a tokenizer.model.

    With special tokens, texts begin with the model's token of beginning, if it has one, as in
    transformers; a tokenizer_config.json may say something else.

    Raises:
        ValueError: it is damaged, or of a kind that is not computed here.
    """
    content = read_bytes(path, "tokenizer", LARGEST_JSON)
    try:
        return _read(content)
    except (ValueError, IndexError, struct.error) as error:
        raise ValueError(f"{path} is no tokenizer.model of SentencePiece: {error}.") from error


def _read(content: bytes) -> TokenizerFile:
    fields = list(_fields(content))
    pieces = _read_pieces([value for number, value in fields if number == 1])
    trainer, normalizer = (
        dict(_fields(b"".join(_bytes(value) for number, value in fields if number == wanted)))
        for wanted in (2, 3)
    )
    require(bool(trainer), "it ends before it says how it was trained")
    kind = trainer.get(3, _UNIGRAM)
    require(kind in (_UNIGRAM, _BPE), f"its model_type is {shown(kind)}, known are unigram and BPE")
    require(not trainer.get(24), "blanks stand behind its words (treat_whitespace_as_suffix)")
    require(bool(normalizer.get(5, 1)), "its blanks are not escaped (escape_whitespaces)")
    add_space = bool(normalizer.get(3, 1))
    unknown = pieces.of(_Kind.UNKNOWN)
    require(len(unknown) == 1, f"it has {len(unknown)} unknown pieces, not one")
    if kind == _BPE:
        backend = scored_bpe(pieces.texts, pieces.scores, unknown=unknown[0], add_space=add_space)
    else:
        backend = _unigram(pieces, add_space)
    first: list[Any] = []
    charsmap = _bytes(normalizer.get(2, b""))
    if charsmap:
        check_charsmap(base64.b64encode(charsmap).decode())
        first.append(normalizers.Precompiled(charsmap))
    if normalizer.get(4, 1):
        first.append(normalizers.Replace(tokenizers.Regex(SPACES_AROUND), ""))
        first.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if first:
        backend.normalizer = normalizers.Sequence([*first, backend.normalizer])
    backend.add_special_tokens([*unknown, *pieces.of(_Kind.CONTROL)])
    backend.add_tokens(
        [
            tokenizers.AddedToken(text, normalized=False)
            for text in pieces.of(_Kind.USER_DEFINED)
            if SPACE not in text  # those are found by their merges
        ]
    )

    def control(number: int, usual: int) -> str:
        """The piece whose id a field of the trainer gives, if it is one of control."""
        i = trainer.get(number, usual)
        i = i - 2**64 if i >= 2**63 else i
        known = 0 <= i < len(pieces.texts) and pieces.kinds[i] == _Kind.CONTROL
        return pieces.texts[i] if known else ""

    begin, end, pad = control(41, 1), control(42, 2), control(43, -1)
    add_begin(backend, begin)
    return TokenizerFile(backend, pad, end)


def _unigram(pieces: _Pieces, add_space: bool) -> tokenizers.Tokenizer:
    """Makes a tokenizer that cuts a text into its likeliest pieces."""
    check_pieces(pieces.texts)
    vocabulary = list(zip(pieces.texts, pieces.scores, strict=True))
    unknown = pieces.kinds.index(_Kind.UNKNOWN)
    model = models.Unigram(vocabulary, unknown, byte_fallback=_Kind.BYTE in pieces.kinds)
    backend = tokenizers.Tokenizer(model)
    before = [normalizers.Prepend(SPACE)] if add_space else []
    backend.normalizer = normalizers.Sequence([normalizers.Replace(" ", SPACE), *before])
    strip = [decoders.Strip(" ", 1, 0)] if add_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _read_pieces(messages: list[Any]) -> _Pieces:
    pieces = _Pieces([], [], [])
    for message in messages:
        fields = dict(_fields(_bytes(message)))
        text, score = _bytes(fields.get(1, b"")), fields.get(2, 0.0)
        require(0 < len(text) <= _LONGEST_PIECE, f"a piece has {len(text)} bytes")
        require(isinstance(score, float) and math.isfinite(score), "a score is no number")
        pieces.texts.append(text.decode("utf-8"))
        pieces.scores.append(score)
        pieces.kinds.append(_Kind(fields.get(3, _Kind.NORMAL)))
    require(bool(pieces.texts), "it has no pieces")
    require(len(set(pieces.texts)) == len(pieces.texts), "a piece stands twice")
    return pieces


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields number and value of the fields of a protocol buffer: int, float or bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value: Any
            value, place = _varint(message, place)
        elif wire == 2:
            length, place = _varint(message, place)
            value = message[place : place + length]
            require(len(value) == length, "it is cut short")
            place += length
        elif wire == 5:
            (value,) = struct.unpack_from("<f", message, place)
            place += 4
        elif wire == 1:
            (value,) = struct.unpack_from("<d", message, place)
            place += 8
        else:
            raise ValueError(f"it has a field of type {wire}")
        yield number, value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        require(shift < 64, "it has a number of more than 64 bits")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _bytes(value: Any) -> bytes:
    require(isinstance(value, bytes), "it has a number where a text belongs")
    return value
