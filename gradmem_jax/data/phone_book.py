"""Phone book: names and numbers to remember, made when asked for.

A context is lines such as `Ada Moreau: 555-0142`, a query `Ada Moreau:`, its target ` 555-0142`.
"""

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Iterable
from typing import SupportsIndex

import numpy as np

from gradmem_jax.checks import check_fields, require, require_choice, require_integer
from gradmem_jax.data.records import SPLITS, Record
from gradmem_jax.data.text_source import encode_target, length_buckets, query_arrays
from gradmem_jax.data.text_task import PlainTexts
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer, character_tokenizer, load_tokenizer

_FIRST = """
    Ada Alan Amina Anton Aria Bela Bruno Carla Cem Clara Dario Dina Edgar Elena Emil Esther Farid
    Fiona Felix Greta Hana Hugo Ida Igor Ines Ivan Jana Jonas Julia Karim Kira Lars Leila Leo Lina
    Luca Maja Malik Marta Max Mina Nadia Nils Nora Olga Omar Oskar Paula Pavel Petra Quinn Rana
    Remy Rosa Samir Sara Simon Sofia Tara Theo Uma Vera Viktor Wanda Xenia Yara Yusuf Zoe
"""
_LAST = """
    Abbott Adler Almeida Baker Bauer Bianchi Brandt Castillo Chen Costa Dalton Dietrich Dubois
    Eklund Engel Farrell Fischer Fontaine Garcia Gupta Hansen Haddad Hayes Horvat Ivanov Jansen
    Jensen Kaplan Keller Khan Kovacs Kowalski Lambert Larsen Lehmann Lopez Maier Marino Mendes
    Moreau Moretti Nakamura Navarro Nguyen Novak Okafor Olsen Orlov Park Pereira Petrov Quist
    Ramirez Reyes Rossi Santos Sato Schneider Silva Singh Sommer Takahashi Tanaka Thompson Ueda
    Varga Vogel Weber Winter Yamada Young Zhang Zimmer
"""
FIRST_NAMES, LAST_NAMES = tuple(_FIRST.split()), tuple(_LAST.split())
_HELD_OUT = 16  # one of so many contexts belongs to validation, one to test
_MEASURED = 256  # samples whose lengths are measured


@dataclasses.dataclass(frozen=True)
class PhoneBookConfig(PlainTexts):
    """Retrieval of phone numbers by name; satisfies `task.Task`.

    Attributes:
        num_entries: names, all different, and numbers in a context.
        queries_per_context: R, different names asked for after one WRITE.
        tokenizer_path: a pretrained tokenizer, see `load_tokenizer`; by default an id for each
            character.
        seed: samples are a function of (seed, split, index); no context is in two splits.
        num_samples: length of the stream.

    Examples:
        >>> from gradmem_jax.data.phone_book import PhoneBookConfig
        >>> record = PhoneBookConfig(num_entries=4).source("train").record(0)
        >>> len(record.context.splitlines())
        4
    """

    num_entries: int = 8
    queries_per_context: int = 1
    tokenizer_path: str = ""
    seed: int = 0
    num_samples: int = 2**31 - 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("num_entries", "queries_per_context", "num_samples"):
            require_integer(name, getattr(self, name), 1)
        require(self.num_samples < 2**31, f"num_samples={self.num_samples} must be below 2**31.")
        require_integer("seed", self.seed, 0)
        require(self.seed < 2**60, f"seed={self.seed} must be below 2**60.")
        num_names = len(FIRST_NAMES) * len(LAST_NAMES)
        require(
            self.num_entries <= num_names,
            f"num_entries={self.num_entries} needs as many different names; there are {num_names}.",
        )
        require(
            self.queries_per_context <= self.num_entries,
            f"queries_per_context={self.queries_per_context} is more than the {self.num_entries} "
            "entries of a context.",
        )

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of its texts."""
        return _tokenizer(self.tokenizer_path)

    @property
    def context_buckets(self) -> tuple[int, ...]:
        """A length that holds nearly all contexts, and one that holds any."""
        return _buckets(dataclasses.replace(self, seed=0))[0]

    @property
    def query_buckets(self) -> tuple[int, ...]:
        """One length, which holds any query with its target."""
        return _buckets(dataclasses.replace(self, seed=0))[1]

    def source(self, split: str, num_samples: int | None = None) -> "PhoneBookSource":
        """Returns the samples of a split, `num_samples` of them if given.

        Raises:
            ValueError: there is no such split, or the tokenizer cannot tell numbers from names.
        """
        require_choice("split", split, SPLITS)
        count = self.num_samples if num_samples is None else num_samples
        return PhoneBookSource(dataclasses.replace(self, num_samples=count), split)


class PhoneBookSource:
    """Random access to the samples of a split, made when asked for; see `task.Source`."""

    def __init__(self, config: PhoneBookConfig, split: str):
        self.config = config
        self.split = split
        self._tokenizer = config.tokenizer

    def __len__(self) -> int:
        return self.config.num_samples

    def __repr__(self) -> str:
        return f"PhoneBookSource({self.config}, {self.split!r})"

    def records(self, index: SupportsIndex) -> list[Record]:
        """Returns the texts of a sample, a record for each of its queries."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)}).")
        c = self.config
        stream = c.seed * len(SPLITS) + SPLITS.index(self.split)
        rng = np.random.Generator(np.random.Philox(key=np.array([stream, index], np.uint64)))
        context = ""
        while not context or _split_of(context) != self.split:
            entries = _draw_entries(rng, c.num_entries)
            context = "\n".join(f"{name}: {number}" for name, number in entries)
        asked = [entries[i] for i in rng.permutation(c.num_entries)[: c.queries_per_context]]
        return [
            Record(f"{self.split}:{index}", context, f"{name}:", (number,))
            for name, number in asked
        ]

    def record(self, index: SupportsIndex) -> Record:
        """Returns the texts of a sample's first query."""
        return self.records(index)[0]

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        records = self.records(index)
        targets = [encode_target(self._tokenizer, r.question, r.answers[0]) for r in records]
        found = [target for target in targets if target is not None]
        require(
            len(found) == len(targets),
            f"the tokenizer {self.config.tokenizer_path!r} makes one token of the end of a name "
            "and the start of a number; use another.",
        )
        context_ids = self._tokenizer.encode(records[0].context)
        return {"context_ids": context_ids} | query_arrays(found, self._tokenizer.pad_id)


def _draw_entries(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    names = rng.choice(len(FIRST_NAMES) * len(LAST_NAMES), count, replace=False)
    numbers = rng.integers(10**7, size=count)
    first, last = np.divmod(names, len(LAST_NAMES))
    return [
        (f"{FIRST_NAMES[i]} {LAST_NAMES[j]}", f"{n // 10**4:03d}-{n % 10**4:04d}")
        for i, j, n in zip(first, last, numbers, strict=True)
    ]


def _split_of(context: str) -> str:
    content = "\n".join(sorted(context.split("\n"))).encode()
    rest = hashlib.blake2b(content, digest_size=1).digest()[0] % _HELD_OUT
    return {0: "validation", 1: "test"}.get(rest, "train")


@functools.lru_cache(maxsize=4)
def _tokenizer(path: str) -> TextTokenizer:
    if path:
        return load_tokenizer(path)
    return character_tokenizer([*FIRST_NAMES, *LAST_NAMES, "0123456789-: \n"])


@functools.lru_cache(maxsize=4)
def _buckets(config: PhoneBookConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Measures some samples; the bound is that of the longest names and of digits one by one."""

    def longest(names: Iterable[str]) -> int:
        return max(len(config.tokenizer.encode(f" {name}")) for name in names)

    name = longest(FIRST_NAMES) + longest(LAST_NAMES)
    number = len(" 555-0142")
    line = name + len(":\n") + number
    source = config.source("train", _MEASURED)
    measured = max(len(source[i]["context_ids"]) for i in range(_MEASURED))
    usual = length_buckets(np.array([measured]), count=1)[0]
    bound = length_buckets(np.array([config.num_entries * line]), count=1)[0]
    query = length_buckets(np.array([name + len(":") + number + 1]), count=1)
    return tuple(sorted({min(usual, bound), bound})), query
