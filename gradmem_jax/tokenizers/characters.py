"""A tokenizer of single characters."""

import dataclasses
import string
import unicodedata
from collections.abc import Iterable

import numpy as np

from gradmem_jax.checks import check_fields, require_integer

SPECIALS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
PAD_ID, UNKNOWN_ID = 0, 3
STRUCTURE = "!?:|"
_BASE_ALPHABET = string.ascii_letters + string.digits
_EXTRA_RANGES = (
    (0x0391, 0x03CA),  # Greek
    (0x0410, 0x0450),  # Cyrillic
    (0x00A1, 0x0180),  # Latin-1 and Latin Extended-A
    (0x2460, 0x2500),  # circled and bracketed numbers and letters
    (0x2500, 0x2600),  # box drawing, blocks, geometric shapes
)


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One id for each symbol, behind the ids of [PAD], [BOS], [EOS] and [UNK].

    Attributes:
        symbols: the symbols, each a single character, in the order of their ids.
    """

    symbols: str

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.symbols or len(set(self.symbols)) != len(self.symbols):
            raise ValueError(f"symbols={self.symbols!r} must be different characters, one or more.")

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(SPECIALS) + len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 [len(text)]; unknown symbols become [UNK]."""
        positions = (self.symbols.find(symbol) for symbol in text)
        ids = [UNKNOWN_ID if p < 0 else p + len(SPECIALS) for p in positions]
        return np.array(ids, np.int32)

    def unknown(self, text: str) -> list[str]:
        """Returns the symbols of a text that become [UNK]."""
        return [symbol for symbol in text if symbol not in self.symbols]

    def decode(self, ids: Iterable[int], *, keep_specials: bool = False) -> str:
        """Returns the text of ids.

        Args:
            ids: ids below `vocab_size`.
            keep_specials: show [PAD] and its like, which are dropped otherwise.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        parts = []
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is not in the vocabulary [0, {self.vocab_size}).")
            if i >= len(SPECIALS):
                parts.append(self.symbols[i - len(SPECIALS)])
            elif keep_specials:
                parts.append(SPECIALS[i])
        return "".join(parts)


def _extra_symbols() -> str:
    symbols = (chr(code) for start, end in _EXTRA_RANGES for code in range(start, end))
    return "".join(s for s in symbols if unicodedata.category(s)[0] not in "CMZ")


MAX_ALPHABET_SIZE = len(_BASE_ALPHABET) + len(_extra_symbols())


def kv_alphabet(alphabet_size: int) -> str:
    """Returns the symbols of keys and values: letters, digits, then characters of other scripts.

    Raises:
        ValueError: there are not so many.
    """
    alphabet_size = require_integer("alphabet_size", alphabet_size, 1)
    if alphabet_size > MAX_ALPHABET_SIZE:
        raise ValueError(f"alphabet_size={alphabet_size} must be in [1, {MAX_ALPHABET_SIZE}].")
    return (_BASE_ALPHABET + _extra_symbols())[:alphabet_size]


def kv_tokenizer(alphabet_size: int) -> CharTokenizer:
    """Returns the tokenizer of KV retrieval; `!?:|` follow the first 62 symbols."""
    alphabet = kv_alphabet(alphabet_size)
    split = min(alphabet_size, len(_BASE_ALPHABET))
    return CharTokenizer(alphabet[:split] + STRUCTURE + alphabet[split:])
