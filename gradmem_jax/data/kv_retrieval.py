"""KV retrieval: remember key-value pairs, give back the value of a key (the paper's main task).

A context is `!k1:v1!!k2:v2!...!kN:vN!|`, a query `?!kj:`, its target `vj!|`.
"""

import dataclasses
import enum
import hashlib
import operator
from typing import Any, Literal, SupportsIndex

import numpy as np

from gradmem_jax.checks import (
    check_fields,
    require,
    require_integer,
    require_number,
)
from gradmem_jax.losses import IGNORE
from gradmem_jax.tokenizers.characters import (
    PAD_ID,
    STRUCTURE,
    CharTokenizer,
    kv_alphabet,
    kv_tokenizer,
)

_HELD_OUT_SHARE = 16  # one of so many sets of pairs belongs to validation or test
_MAX_DRAWS = 1000
_LONGEST = 1000  # key or value
Split = Literal["train", "validation", "test"]


class TokenKind(enum.IntEnum):
    """What a context token is."""

    PAD = 0
    KEY = 1
    VALUE = 2
    DELIMITER = 3
    NOISE = 4


@dataclasses.dataclass(frozen=True)
class KVRetrievalConfig:
    """A KV retrieval task; satisfies `task.Task`.

    Attributes:
        num_pairs: N, pairs in a context; their keys differ.
        key_length: symbols of a key.
        value_length: symbols of a value.
        alphabet_size: number of different symbols in keys and values; 62 and 512 in the paper.
        noise: share of noise symbols in the context, its closing `|` aside; they stand between
            the pairs, never inside one, and there are equally many in every context.
        queries_per_context: R, different pairs asked for after one WRITE.
        num_segments: T, parts of N / T pairs that the context comes in, to be written one after
            the other; each closes with `|`.
        seed: samples are a function of (seed, split, index).
        split: "train", "validation" or "test". No set of pairs of "train" ever occurs in the other
            two, whatever the seeds; these are drawn from the rest, each for itself.
        num_samples: length of the stream.

    Examples:
        >>> from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
        >>> task = KVRetrievalConfig(num_pairs=4)
        >>> task.context_length, task.query_length
        (29, 9)
    """

    num_pairs: int = 4
    key_length: int = 2
    value_length: int = 2
    alphabet_size: int = 62
    noise: float = 0.0
    queries_per_context: int = 1
    num_segments: int = 1
    seed: int = 0
    split: Split = "train"
    num_samples: int = 2**31 - 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("num_pairs", "key_length", "value_length", "num_samples"):
            require_integer(name, getattr(self, name), 1)
        for name in ("key_length", "value_length"):
            require(
                getattr(self, name) <= _LONGEST,
                f"{name}={getattr(self, name)} must be at most {_LONGEST}.",
            )
        require_integer("queries_per_context", self.queries_per_context, 1)
        require(self.num_samples < 2**31, f"num_samples={self.num_samples} must be below 2**31.")
        require_integer("seed", self.seed, 0)
        require(self.seed < 2**62, f"seed={self.seed} must be below 2**62.")
        require_number("noise", self.noise)
        require(0 <= self.noise <= 0.95, f"noise={self.noise} must be in [0, 0.95].")
        kv_alphabet(self.alphabet_size)
        num_keys = self.alphabet_size**self.key_length
        require(
            self.num_pairs <= num_keys,
            f"num_pairs={self.num_pairs} needs as many different keys, but there are {num_keys} "
            f"of length {self.key_length} over {self.alphabet_size} symbols; use longer keys, a "
            "larger alphabet or fewer pairs.",
        )
        require(
            self.queries_per_context <= self.num_pairs,
            f"queries_per_context={self.queries_per_context} is more than the {self.num_pairs} "
            "pairs of a context.",
        )
        require_integer("num_segments", self.num_segments, 1)
        require(
            self.num_pairs % self.num_segments == 0,
            f"num_pairs={self.num_pairs} must be a multiple of num_segments={self.num_segments}.",
        )

    @property
    def segment_pairs(self) -> int:
        """Pairs of a segment."""
        return self.num_pairs // self.num_segments

    @property
    def num_noise(self) -> int:
        """Noise symbols in a segment."""
        pair_symbols = self.segment_pairs * (self.key_length + self.value_length + 3)
        return round(pair_symbols * self.noise / (1 - self.noise))

    @property
    def context_length(self) -> int:
        """S, tokens of a segment; of the context if there is but one."""
        return self.segment_pairs * (self.key_length + self.value_length + 3) + self.num_noise + 1

    @property
    def query_length(self) -> int:
        """Q, tokens of a query with its target."""
        return 3 + self.key_length + self.value_length + 2

    @property
    def vocab_size(self) -> int:
        """V, ids of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def tokenizer(self) -> CharTokenizer:
        """The tokenizer of its texts."""
        return kv_tokenizer(self.alphabet_size)

    @property
    def pad_id(self) -> int:
        """The id that stands for no symbol."""
        return PAD_ID

    @property
    def end_id(self) -> int:
        """The id that ends an answer, that of `|`."""
        return int(self.tokenizer.encode("|")[0])

    @property
    def context_buckets(self) -> tuple[int, ...]:
        """All contexts, or segments, have one length."""
        return (self.context_length,)

    @property
    def query_buckets(self) -> tuple[int, ...]:
        """All queries have one length."""
        return (self.query_length,)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of `TokenKind`."""
        return tuple(kind.name.lower() for kind in TokenKind)

    def source(self, split: str, num_samples: int | None = None) -> "KVRetrievalSource":
        """Returns the samples of a split, `num_samples` of them if given.

        Raises:
            ValueError: there is no such split.
        """
        count = self.num_samples if num_samples is None else num_samples
        known: Any = split  # which __post_init__ checks
        return KVRetrievalSource(dataclasses.replace(self, split=known, num_samples=count))


class KVRetrievalSource:
    """Random access to the samples of a task, made when asked for.

    A sample is a dict of
        context_ids int32 [S], or [T, S] if there are several segments,
        context_kinds int8 like context_ids, a `TokenKind` for each context token,
        query_ids int32 [R, Q], query and target,
        labels int32 [R, Q], the target's ids in their places, -100 elsewhere,
        value_mask bool [R, Q], true on the target's value symbols,
        query_segments int32 [R], the segment of each pair asked for, if there are several.

    Examples:
        >>> from gradmem_jax.data.kv_retrieval import KVRetrievalConfig, KVRetrievalSource
        >>> task = KVRetrievalConfig(num_pairs=2)
        >>> sample = KVRetrievalSource(task)[0]
        >>> sample["context_ids"].shape, sample["query_ids"].shape  # [S], [R, Q]
        ((15,), (1, 9))
    """

    def __init__(self, config: KVRetrievalConfig):
        self.config = config
        tokenizer = kv_tokenizer(config.alphabet_size)
        self._symbol_ids = tokenizer.encode(kv_alphabet(config.alphabet_size))
        marks = (int(i) for i in tokenizer.encode(STRUCTURE))
        self._bang, self._question, self._colon, self._bar = marks

    def __len__(self) -> int:
        return self.config.num_samples

    def __repr__(self) -> str:
        return f"KVRetrievalSource({self.config})"

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)}).")
        c = self.config
        streams = {"train": 2 * c.seed, "validation": 2 * c.seed + 1, "test": 2**63 + c.seed}
        key = np.array([streams[c.split], index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        keys, values = self._draw_pairs(rng)
        count = c.segment_pairs
        segments = [
            self._segment(rng, keys[i : i + count], values[i : i + count])
            for i in range(0, c.num_pairs, count)
        ]
        asked = rng.permutation(c.num_pairs)[: c.queries_per_context]
        queries, start = self._queries(keys[asked], values[asked])
        labels = np.full_like(queries, IGNORE)
        labels[:, start:] = queries[:, start:]
        value_mask = np.zeros(queries.shape, bool)
        value_mask[:, start : start + c.value_length] = True
        questions = {"query_ids": queries, "labels": labels, "value_mask": value_mask}
        if c.num_segments == 1:
            context, kinds = segments[0]
            return {"context_ids": context, "context_kinds": kinds} | questions
        return {
            "context_ids": np.stack([ids for ids, _ in segments]),
            "context_kinds": np.stack([kinds for _, kinds in segments]),
            "query_segments": (asked // count).astype(np.int32),
        } | questions

    def _draw_pairs(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws keys [N, key_length] and values [N, value_length] that belong to the split."""
        c = self.config
        for _ in range(_MAX_DRAWS):
            keys = self._draw_keys(rng)
            values = rng.integers(c.alphabet_size, size=(c.num_pairs, c.value_length))
            if _is_held_out(keys, values) == (c.split != "train"):
                return self._symbol_ids[keys], self._symbol_ids[values]
        raise ValueError(
            f"no sample of {c} belongs to split {c.split!r} among {_MAX_DRAWS} draws; the task has "
            "too few different samples to keep splits apart. Use more pairs or a larger alphabet."
        )

    def _draw_keys(self, rng: np.random.Generator) -> np.ndarray:
        c = self.config
        if c.alphabet_size**c.key_length < 2**31:
            numbers = rng.choice(c.alphabet_size**c.key_length, c.num_pairs, replace=False)
            places = c.alphabet_size ** np.arange(c.key_length)
            return numbers[:, None] // places % c.alphabet_size
        while True:
            keys = rng.integers(c.alphabet_size, size=(c.num_pairs, c.key_length))
            if len(np.unique(keys, axis=0)) == c.num_pairs:
                return keys

    def _segment(
        self, rng: np.random.Generator, keys: np.ndarray, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        c = self.config
        bang, colon = (np.full((len(keys), 1), mark) for mark in (self._bang, self._colon))
        pairs = np.concatenate([bang, keys, colon, values, bang], axis=1)
        kind = (
            [TokenKind.DELIMITER]
            + [TokenKind.KEY] * c.key_length
            + [TokenKind.DELIMITER]
            + [TokenKind.VALUE] * c.value_length
            + [TokenKind.DELIMITER]
        )
        context, kinds = pairs.reshape(-1), np.tile(np.array(kind, np.int8), len(keys))
        if c.num_noise:
            gaps = rng.integers(len(keys) + 1, size=c.num_noise) * pairs.shape[1]
            noise = self._symbol_ids[rng.integers(c.alphabet_size, size=c.num_noise)]
            context = np.insert(context, gaps, noise)
            kinds = np.insert(kinds, gaps, TokenKind.NOISE)
        end = np.append(context, self._bar).astype(np.int32)
        return end, np.append(kinds, TokenKind.DELIMITER).astype(np.int8)

    def _queries(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, int]:
        """Returns queries with targets [R, Q], and where the target starts."""

        def column(mark: int) -> np.ndarray:
            return np.full((len(keys), 1), mark)

        query = [column(self._question), column(self._bang), keys, column(self._colon)]
        target = [values, column(self._bang), column(self._bar)]
        start = sum(part.shape[1] for part in query)
        return np.concatenate(query + target, axis=1).astype(np.int32), start


def _is_held_out(keys: np.ndarray, values: np.ndarray) -> bool:
    """Whether a set of pairs, keys [N, key_length] and values, belongs to validation and test."""
    rows = np.concatenate([keys, values], axis=1).astype("<u2")
    content = b"".join(sorted(row.tobytes() for row in rows))
    return hashlib.blake2b(content, digest_size=1).digest()[0] % _HELD_OUT_SHARE == 0


def render(sample: dict[str, Any], tokenizer: CharTokenizer) -> str:
    """Returns a sample as text: the segments, then a line for each query and target."""
    lines = [tokenizer.decode(ids) for ids in np.atleast_2d(sample["context_ids"])]
    for ids, labels in zip(sample["query_ids"], sample["labels"], strict=True):
        query, target = tokenizer.decode(ids[labels < 0]), tokenizer.decode(ids[labels >= 0])
        lines.append(f"{query} -> {target}")
    return "\n".join(lines)
