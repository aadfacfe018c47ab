"""Text compression: giving back a span of text word by word (the paper's appendix I)."""

import dataclasses
import pathlib
from typing import ClassVar

import numpy as np
from absl import logging

from gradmem_jax.checks import require, require_integer
from gradmem_jax.data.records import SPLITS, Record, Records, Skipped, read_text
from gradmem_jax.data.text_source import TextSource, chunk_source, encode_texts
from gradmem_jax.data.text_task import TextTask
from gradmem_jax.foreign_text import one_line
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer

_REGIONS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


@dataclasses.dataclass(frozen=True)
class TextSpansConfig(TextTask):
    """Spans of text files, each both context and target.

    `data_dir` is a text file or a folder of files `.txt` or `.txt.gz`; by default the folder
    `pg19`. If it has the folders train, validation and test (as PG19 has), these are the splits.
    Otherwise the first 80 % of every file belong to train, the next 10 % to validation and the
    last 10 % to test. Spans follow one another without overlap.

    Attributes:
        num_tokens: tokens of a span.
        query: what is asked before the target.
        max_characters: how much of a split is read, files in the order of their names; what is
            beyond is not used, which is logged.

    Examples:
        >>> from gradmem_jax.data.text_spans import TextSpansConfig
        >>> TextSpansConfig(num_tokens=16, data_dir="data/pg19").num_tokens
        16
    """

    num_tokens: int = 32
    query: str = "text:"
    max_characters: int = 10_000_000

    folder_name: ClassVar[str] = "pg19"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("num_tokens", self.num_tokens, 1)
        require_integer("max_characters", self.max_characters, 1)

    @property
    def records_name(self) -> str:
        """How much is read."""
        return f"{self.max_characters}_characters"

    def read(self, folder: pathlib.Path, split: str) -> Records:
        """Reads the texts of a split; see `TextTask.read`."""
        has_splits = any((folder / name).is_dir() for name in SPLITS)
        root = folder / split if has_splits else folder
        files = [root] if root.is_file() else sorted([*root.glob("*.txt"), *root.glob("*.txt.gz")])
        require(bool(files), f"{root} has no files .txt or .txt.gz.")
        start, end = (0.0, 1.0) if has_splits else _REGIONS[split]
        kept: list[Record] = []
        room = self.max_characters
        for i, path in enumerate(files):
            text = read_text(path)
            region = text[_word_start(text, start) : _word_start(text, end)]
            kept.append(Record(path.name, region[:room]))
            room -= len(region)
            if room < 0 or (room == 0 and i < len(files) - 1):
                logging.warning(
                    "%s, %s: max_characters=%d end in file %d of %d, %s",
                    one_line(str(folder)),
                    split,
                    self.max_characters,
                    i + 1,
                    len(files),
                    one_line(path.name),
                )
                break
        return Records(tuple(kept))

    def make_source(self, records: Records, tokenizer: TextTokenizer) -> TextSource:
        """Makes a sample of each span; see `TextTask.make_source`."""
        length = self.num_tokens
        spans, skipped = [np.zeros((0, length), np.int32)], list(records.skipped)
        texts = encode_texts(tokenizer, (record.context for record in records.kept))
        for record, ids in zip(records.kept, texts, strict=True):
            spans.append(ids[: len(ids) // length * length].reshape(-1, length))
            if len(ids) < length:
                skipped.append(Skipped(record.id, f"{len(ids)} tokens, num_tokens={length}"))
        query = tokenizer.encode(self.query)
        return chunk_source(np.concatenate(spans), length, query, tokenizer, tuple(skipped))

    def texts(self, record: Record) -> tuple[str, ...]:
        """Returns the text and the query."""
        return (record.context, self.query)

    @property
    def context_buckets(self) -> tuple[int, ...]:
        """All spans have one length."""
        return (self.num_tokens,)

    @property
    def query_buckets(self) -> tuple[int, ...]:
        """All queries with targets have one length."""
        return (len(self.tokenizer.encode(self.query)) + self.num_tokens,)


def _word_start(text: str, share: float) -> int:
    """Returns the place of the first white space behind a share of a text."""
    place = round(len(text) * share)
    while 0 < place < len(text) and not text[place].isspace():
        place += 1
    return place
