"""What training and evaluation need to know of a task, whatever it asks."""

from typing import Any, Protocol

import numpy as np

from gradmem_jax.foreign_text import one_line


class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def vocab_size(self) -> int:
        """V, number of ids."""

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 [n]."""

    def unknown(self, text: str) -> list[str]:
        """Returns the words or symbols of a text that have no id of their own."""

    def decode(self, ids: Any) -> str:
        """Returns the text of ids, padding and other special ids left out."""


def ids_without_token(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Returns the ids below `vocab_size` that a tokenizer has no token for, int [n], ascending."""
    known = getattr(tokenizer, "token_ids", range(tokenizer.vocab_size))
    return np.setdiff1d(np.arange(vocab_size), known)


def starting_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Returns the ids of a text that nothing stands before, int32 [n]; see `encode_start`.

    There are none if the text has none: a token of beginning alone stands for nothing.
    """
    ids = np.asarray(getattr(tokenizer, "encode_start", tokenizer.encode)(text), np.int32)
    num_begin = len(getattr(tokenizer, "begin_ids", ()))
    return ids if len(ids) > num_begin else ids[:0]


def text_of(tokenizer: Tokenizer, ids: Any) -> str:
    """Returns the text of ids to be shown, or in its place why there is none.

    Work that is done is not to be lost because it cannot be shown.
    """
    try:
        return tokenizer.decode(ids)
    except ValueError as error:
        return f"({one_line(str(error), 200)})"


class Source(Protocol):
    """Random access to the samples of a split.

    A sample is a dict of
        context_ids int32 [S], without padding; [T, S] if it comes in T segments,
        query_ids int32 [R, Q], queries with their targets; rows padded on the right with pad_id,
        labels int32 [R, Q], the target's ids in their places, -100 elsewhere,
        value_mask bool [R, Q], the targets that exact match looks at,
        and perhaps context_kinds int8 like context_ids, and query_segments int32 [R].

    Examples:
        >>> from gradmem_jax.data.kv_retrieval import KVRetrievalConfig, KVRetrievalSource
        >>> from gradmem_jax.data.task import Source
        >>> source: Source = KVRetrievalSource(KVRetrievalConfig(num_pairs=2))
        >>> sorted(source[0])
        ['context_ids', 'context_kinds', 'labels', 'query_ids', 'value_mask']
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]: ...


class Task(Protocol):
    """A task: a frozen dataclass whose fields are those of `config.data`.

    Batches are padded to the smallest of `context_buckets` and `query_buckets` that hold them, so
    that no other shape is ever compiled.

    Examples:
        >>> from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
        >>> from gradmem_jax.data.task import Task
        >>> task: Task = KVRetrievalConfig(num_pairs=2)
        >>> task.context_buckets
        (15,)
    """

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its texts."""

    @property
    def pad_id(self) -> int:
        """The id that fills contexts and queries."""

    @property
    def vocab_size(self) -> int:
        """V, ids of the tokenizer."""

    @property
    def context_buckets(self) -> tuple[int, ...]:
        """Lengths S that contexts are padded to, ascending; the last one holds any of them."""

    @property
    def query_buckets(self) -> tuple[int, ...]:
        """Lengths Q that queries with targets are padded to, ascending."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of context tokens, "pad" first; () without context_kinds."""

    @property
    def num_segments(self) -> int:
        """T, segments that a context comes in; 1 is one piece."""

    def source(self, split: str, num_samples: int | None = None) -> Source:
        """Returns the samples of a split, the first `num_samples` only if given.

        Args:
            split: "train", "validation" or "test".
            num_samples: an upper bound.

        Raises:
            ValueError: there is no such split, or its files are missing or damaged.
        """
