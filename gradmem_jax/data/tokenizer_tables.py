"""Tokenizers from the tables that GGUF and llama2.c files hold."""

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gradmem_jax.config import require_choice

_SPACE = "\u2581"
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL_KINDS = ("gpt-2", "smollm", "llama-bpe")


def byte_level_bpe(pieces: Sequence[str], merges: Sequence[str], kind: str) -> tokenizers.Tokenizer:
    """Makes a tokenizer like that of GPT-2.

    Args:
        pieces: the pieces in the order of their ids, bytes written as GPT-2 does.
        merges: pairs of pieces with a blank between them, the first to be merged first.
        kind: how text is split before: "gpt-2", "smollm" (digits one by one) or "llama-bpe"
            (Llama 3).
    """
    require_choice("tokenizer.ggml.pre", kind, BYTE_LEVEL_KINDS)
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)],
        ignore_merges=kind == "llama-bpe",
    )
    backend = tokenizers.Tokenizer(model)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    pattern = pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_PATTERN), "isolated")
    backend.pre_tokenizer = {
        "gpt-2": words,
        "smollm": pre_tokenizers.Sequence([digits, words]),
        "llama-bpe": pre_tokenizers.Sequence([pattern, bytes_only]),
    }[kind]
    backend.decoder = decoders.ByteLevel()
    return backend


def scored_bpe(
    pieces: Sequence[str], scores: Sequence[float], *, add_space: bool = True
) -> tokenizers.Tokenizer:
    """Makes a tokenizer like that of Llama 2: neighbours that make the best piece merge first.

    Args:
        pieces: the pieces in the order of their ids, with U+2581 for blanks; "<unk>" and bytes as
            "<0x0A>" among them.
        scores: how good each piece is.
        add_space: whether a blank is put before the text.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    pairs = [
        (-scores[i], i, piece[:cut], piece[cut:])
        for piece, i in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    # Pairs that make the same piece stay in order, the shorter left part first.
    merges = [pair[2:] for pair in sorted(pairs, key=lambda pair: pair[:2])]
    model = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    blanks = normalizers.Replace(" ", _SPACE)
    first = [normalizers.Prepend(_SPACE)] if add_space else []
    backend.normalizer = normalizers.Sequence([*first, blanks])
    strip = [decoders.Strip(" ", 1, 0)] if add_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend
