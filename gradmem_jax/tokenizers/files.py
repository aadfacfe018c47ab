"""Tokenizers in the files of GGUF and llama2.c."""

import math
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from gradmem_jax.checks import require, require_choice
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage.reading import LARGEST_JSON, read_bytes
from gradmem_jax.tokenizers.bounds import LLAMA3_PATTERN, check_pieces

SPACE = "\u2581"
_BYTE_LEVEL_KINDS = ("gpt-2", "smollm", "llama-bpe")
_BEGIN, _END = 1, 2  # ids in llama2.c


class TokenizerFile(NamedTuple):
    """What a file says of a tokenizer.

    Attributes:
        backend: the tokenizer.
        pad_token: what fills contexts, "" if the file does not say it.
        end_token: what ends an answer, "" if the file does not say it.
    """

    backend: tokenizers.Tokenizer
    pad_token: str
    end_token: str


def read_gguf_tokenizer(
    fields: Mapping[str, Any], path: str | pathlib.Path = "the GGUF file"
) -> TokenizerFile:
    """Reads the tokenizer of a GGUF file from its metadata.

    Args:
        fields: the metadata.
        path: the file, for messages.

    Raises:
        ValueError: there is none, it is damaged, or of a kind that is not known here.
    """

    def get(key: str, absent: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{key}", absent)

    def damaged(what: str) -> str:
        return f"{path} has a damaged tokenizer: {what}; get the file again."

    kind, pieces = get("model"), get("tokens")
    require(pieces is not None, f"{path} holds no tokenizer.")
    require(_are_texts(pieces), damaged("tokenizer.ggml.tokens are no texts"))
    require(len(set(pieces)) == len(pieces), damaged("a piece stands twice"))
    require_choice("tokenizer.ggml.model", kind, ("gpt2", "llama"))
    scores = get("scores", [0.0] * len(pieces))
    types = get("token_type", [gguf.TokenType.NORMAL] * len(pieces))
    end = get("eos_token_id")
    pad = get("padding_token_id", end)
    for key, values in (("scores", scores), ("token_type", types)):
        require(
            isinstance(values, list) and len(values) == len(pieces),
            damaged(f"tokenizer.ggml.{key} has not one value for each of {len(pieces)} pieces"),
        )
        require(
            all(isinstance(x, int | float) and not math.isnan(x) for x in values),
            damaged(f"tokenizer.ggml.{key} are no numbers"),
        )
    for key, i in (("eos_token_id", end), ("padding_token_id", pad)):
        require(
            i is None or (type(i) is int and 0 <= i < len(pieces)),
            damaged(f"tokenizer.ggml.{key}={shown(i)} is none of the ids of {len(pieces)} pieces"),
        )
    if kind == "gpt2":
        merges, known = get("merges", []), set(pieces)
        require(_are_texts(merges), damaged("tokenizer.ggml.merges are no texts"))
        for merge in merges:
            left, _, right = merge.partition(" ")
            require(
                {left, right, left + right} <= known,
                damaged(f"tokenizer.ggml.merges has {shown(merge)}, which makes no piece of two"),
            )
        backend = _byte_level_bpe(pieces, merges, get("pre", "gpt-2"))
    else:
        add_space = get("add_space_prefix", True)
        require(
            isinstance(add_space, bool),
            damaged(f"tokenizer.ggml.add_space_prefix={shown(add_space)} is no truth value"),
        )
        backend = scored_bpe(pieces, scores, add_space=add_space)

    def of_type(wanted: gguf.TokenType) -> list[str]:
        return [p for p, t in zip(pieces, types, strict=True) if t == wanted]

    def name(i: int | None) -> str:
        return "" if i is None else pieces[i]

    backend.add_special_tokens(of_type(gguf.TokenType.CONTROL))
    backend.add_tokens(
        [
            tokenizers.AddedToken(piece, normalized=False)
            for piece in of_type(gguf.TokenType.USER_DEFINED)
        ]
    )
    return TokenizerFile(backend, name(pad), name(end))


def read_llama2c_tokenizer(path: pathlib.Path) -> TokenizerFile:
    """Reads a tokenizer of llama2.c.

    Sequences of llama2.c start with "<s>" and end where the next one starts, so "<s>" is the end
    token too.

    Raises:
        ValueError: the file is damaged.
    """
    content, place = read_bytes(path, "tokenizer", LARGEST_JSON), 4
    pieces: list[str] = []
    scores: list[float] = []
    try:
        while place < len(content):
            require(place + 8 <= len(content), "a piece is cut short")
            score, length = struct.unpack_from("<fi", content, place)
            piece = content[place + 8 : place + 8 + length]
            require(0 < length == len(piece), "a piece is cut short")
            require(not math.isnan(score), "a score is no number")
            pieces.append(piece.decode("utf-8").replace(" ", SPACE))
            scores.append(score)
            place += 8 + length
        require(len(pieces) > _END, "it has no pieces")
        pieces[_BEGIN], pieces[_END] = "<s>", "</s>"
        require(len(set(pieces)) == len(pieces), "a piece stands twice")
    except ValueError as error:
        raise ValueError(f"{path} is no tokenizer of llama2.c, or damaged: {error}.") from error
    backend = scored_bpe(pieces, scores)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    add_begin(backend, "<s>")
    return TokenizerFile(backend, pad_token="</s>", end_token="<s>")


def add_begin(backend: tokenizers.Tokenizer, token: str) -> None:
    """Has texts with special tokens begin with a token; "" leaves them as they are."""
    if token:
        special = [(token, backend.token_to_id(token))]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", special_tokens=special
        )


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _byte_level_bpe(
    pieces: Sequence[str], merges: Sequence[str], kind: str
) -> tokenizers.Tokenizer:
    """Makes a tokenizer like that of GPT-2.

    Args:
        pieces: the pieces in the order of their ids, bytes written as GPT-2 does.
        merges: pairs of pieces with a blank between them, the first to be merged first.
        kind: how text is split before: "gpt-2", "smollm" (digits one by one) or "llama-bpe"
            (Llama 3).
    """
    require_choice("tokenizer.ggml.pre", kind, _BYTE_LEVEL_KINDS)
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)],
        ignore_merges=kind == "llama-bpe",
    )
    backend = tokenizers.Tokenizer(model)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    pattern = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    backend.pre_tokenizer = {
        "gpt-2": words,
        "smollm": pre_tokenizers.Sequence([digits, words]),
        "llama-bpe": pre_tokenizers.Sequence([pattern, bytes_only]),
    }[kind]
    backend.decoder = decoders.ByteLevel()
    return backend


def scored_bpe(
    pieces: Sequence[str],
    scores: Sequence[float],
    *,
    unknown: str = "<unk>",
    add_space: bool = True,
) -> tokenizers.Tokenizer:
    """Makes a tokenizer like that of Llama 2: neighbours that make the best piece merge first.

    Args:
        pieces: the pieces in the order of their ids, with U+2581 for blanks; `unknown` and bytes
            as "<0x0A>" among them.
        scores: how good each piece is.
        unknown: the piece of what no other makes.
        add_space: whether a blank is put before the text.
    """
    check_pieces(pieces)  # the loop below takes this many steps
    ids = {piece: i for i, piece in enumerate(pieces)}
    pairs = [
        (-scores[i], i, piece[:cut], piece[cut:])
        for piece, i in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    # Pairs that make the same piece stay in order, the shorter left part first.
    merges = [pair[2:] for pair in sorted(pairs, key=lambda pair: pair[:2])]
    model = models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    blanks = normalizers.Replace(" ", SPACE)
    first = [normalizers.Prepend(SPACE)] if add_space else []
    backend.normalizer = normalizers.Sequence([*first, blanks])
    strip = [decoders.Strip(" ", 1, 0)] if add_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend
