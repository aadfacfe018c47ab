"""Tokens as a reader sees them: the text cut where the tokenizer cuts it."""

from typing import Any, NamedTuple

import numpy as np

from gradmem_jax.data.task import Tokenizer, text_of


class Token(NamedTuple):
    """A token of a text.

    Attributes:
        space: what stands between it and the one before; the tokenizer leaves that out.
        text: its characters; "" if it has none, as one that begins a text.
    """

    space: str
    text: str


def split_tokens(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> tuple[Token, ...]:
    """Returns what each of the ids [S] of a text stands for."""
    with_offsets = getattr(tokenizer, "encode_with_offsets", None)
    if with_offsets is None:
        return tuple(Token("", text_of(tokenizer, [i])) for i in ids)
    _, offsets = with_offsets(text)
    tokens = [Token("", "")] * (len(ids) - len(offsets))
    done = 0
    for start, end in offsets.tolist():
        start = max(start, done)  # several tokens may make one character
        end = max(start, end)
        tokens.append(Token(text[done:start], text[start:end]))
        done = end
    return tuple(tokens)


def token_name(tokenizer: Any, token_id: int) -> str:
    """What a token is called, those that are no text too."""
    if token_id == getattr(tokenizer, "end_id", None):
        return "(end)"
    text = text_of(tokenizer, [token_id])
    backend = getattr(tokenizer, "backend", None)
    if not text and backend is not None:
        return backend.id_to_token(token_id) or ""
    return text
