"""Tokenizers in the files of GGUF and llama2.c."""

import math
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage.reading import LARGEST_JSON, read_bytes
from gradmem_jax.tokenizers.bounds import LLAMA3_PATTERN, QWEN2_PATTERN, check_pieces

SPACE = "\u2581"
# How text is split before it is cut into pieces of bytes, by the names that llama.cpp has for it.
_NAMES = {
    "gpt-2": (
        "gpt-2",
        "phi-2",
        "jina-es",
        "jina-de",
        "jina-v2-es",
        "jina-v2-de",
        "gigachat",
        "a.x-4.0",
        "mellum",
        "exaone4",
        "mpt",
        "olmo",
        "jais",
        "trillion",
        "granite-docling",
    ),
    "smollm": ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": (
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
    ),
    "smaug-bpe": ("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"),
    "qwen2": ("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"),
}
_SPLITS = {name: split for split, names in _NAMES.items() for name in names}
_BEGIN, _END = 1, 2  # ids in llama2.c


class UnknownTokenizerError(ValueError):
    """A tokenizer of a kind that is not known here, of a model that may be."""


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
        ValueError: there is none, or it is damaged.
        UnknownTokenizerError: it is of a kind that is not known here.
    """

    def get(key: str, absent: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{key}", absent)

    def damaged(what: str) -> str:
        return f"{path} has a damaged tokenizer: {what}; get the file again."

    kind, pieces = get("model"), get("tokens")
    require(pieces is not None, f"{path} holds no tokenizer.")
    require(_are_texts(pieces), damaged("tokenizer.ggml.tokens are no texts"))
    require(len(set(pieces)) == len(pieces), damaged("a piece stands twice"))
    for key in ("model", "pre"):
        require(isinstance(get(key, ""), str), damaged(f"tokenizer.ggml.{key} is no text"))
    split = _SPLITS.get(get("pre", "gpt-2")) if kind == "gpt2" else None
    for key, known in (("model", kind in ("gpt2", "llama")), ("pre", kind != "gpt2" or split)):
        if not known:
            raise UnknownTokenizerError(
                f"{path}: tokenizer.ggml.{key}={shown(get(key))} is not known; name another copy "
                "of the model's tokenizer, such as a tokenizer.json, by tokenizer= or --tokenizer."
            )
    scores = get("scores", [0.0] * len(pieces))
    types = get("token_type", [gguf.TokenType.NORMAL] * len(pieces))
    end = get("eos_token_id")
    pad, begin = get("padding_token_id", end), get("bos_token_id")
    for key, values in (("scores", scores), ("token_type", types)):
        require(
            isinstance(values, list) and len(values) == len(pieces),
            damaged(f"tokenizer.ggml.{key} has not one value for each of {len(pieces)} pieces"),
        )
        require(
            all(isinstance(x, int | float) and not math.isnan(x) for x in values),
            damaged(f"tokenizer.ggml.{key} are no numbers"),
        )
    for key, i in (("eos_token_id", end), ("padding_token_id", pad), ("bos_token_id", begin)):
        require(
            i is None or (type(i) is int and 0 <= i < len(pieces)),
            damaged(f"tokenizer.ggml.{key}={shown(i)} is none of the ids of {len(pieces)} pieces"),
        )
    if split:
        merges, known = get("merges", []), set(pieces)
        require(_are_texts(merges), damaged("tokenizer.ggml.merges are no texts"))
        for merge in merges:
            left, _, right = merge.partition(" ")
            require(
                {left, right, left + right} <= known,
                damaged(f"tokenizer.ggml.merges has {shown(merge)}, which makes no piece of two"),
            )
        ids = {piece: i for i, piece in enumerate(pieces)}
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        backend = byte_level(ids, pairs, split)
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
    adds_begin = get("add_bos_token", split in (None, "llama-bpe"))
    require(
        isinstance(adds_begin, bool),
        damaged(f"tokenizer.ggml.add_bos_token={shown(adds_begin)} is no truth value"),
    )
    add_begin(backend, name(begin) if adds_begin else "")
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


def byte_level(
    pieces: Mapping[str, int], merges: Sequence[tuple[str, str]], split: str
) -> tokenizers.Tokenizer:
    """Makes a tokenizer like that of GPT-2.

    Args:
        pieces: the id of each piece, bytes written as GPT-2 does.
        merges: pairs of pieces, the first to be merged first.
        split: how text is split before: "gpt-2", "smollm" (digits one by one), "llama-bpe" (Llama
            3; words that are pieces are not cut), "smaug-bpe" (the same, but all are cut) or
            "qwen2" (digits one by one; composed characters).
    """
    model = models.BPE(dict(pieces), list(merges), ignore_merges=split == "llama-bpe")
    backend = tokenizers.Tokenizer(model)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts: list[Any]
    if split == "gpt-2":
        parts = [words]
    elif split == "smollm":
        parts = [pre_tokenizers.Digits(individual_digits=True), words]
    else:
        pattern = QWEN2_PATTERN if split == "qwen2" else LLAMA3_PATTERN
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        parts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"), bytes_only]
    if split == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
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
