"""What cases of models and tokenizers are made of."""

import pathlib
from collections.abc import Callable

from gradmem_jax.tokenizers.text_tokenizer import load_tokenizer

TEXT = "the cat sat on the mat. " * 20
Case = tuple[str, Callable[[], object], bool]


def opening(read: Callable[[pathlib.Path], object], path: pathlib.Path) -> Callable[[], object]:
    """A call that opens a path."""
    return lambda: read(path)


def encoding(path: pathlib.Path) -> Callable[[], object]:
    """A call that opens a tokenizer and uses it."""

    def encode() -> object:
        tokenizer = load_tokenizer(path)
        return tokenizer.decode(tokenizer.encode(TEXT))

    return encode
