"""WikiText: going on with an article from memory of what came before (Merity et al. 2016)."""

import dataclasses
import pathlib
import re
from typing import ClassVar

import numpy as np

from gradmem_jax.checks import require, require_integer
from gradmem_jax.data.records import Record, Records, files_name, read_text, require_file
from gradmem_jax.data.text_source import TextSource, chunk_source, encode_texts
from gradmem_jax.data.text_task import TextTask
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer

_HEADING = re.compile(r"(?<=\n \n) = [^=\n](?:.*[^=\n])? = (?=\n \n)")  # between blank lines


@dataclasses.dataclass(frozen=True)
class WikiTextConfig(TextTask):
    """Language modelling on WikiText, raw or tokenised.

    A split's tokens, articles one behind the other, are cut into chunks; the first part of a
    chunk is the context, the rest is the target, predicted from memory alone. There is no query.

    Attributes:
        context_length: tokens of a context.
        target_length: tokens of a target.
        train_file: file of the training split in `data_dir`, packed or not. Where it is missing,
            name a file that is there, such as `wiki.valid.tokens`; no file serves two splits.
        validation_file: file of the validation split.
        test_file: file of the test split.

    Examples:
        >>> from gradmem_jax.data.wikitext import WikiTextConfig
        >>> task = WikiTextConfig(context_length=128, target_length=64, data_dir="data/wikitext")
        >>> task.context_length
        128
    """

    context_length: int = 128
    target_length: int = 128
    train_file: str = "wiki.train.raw"
    validation_file: str = "wiki.valid.raw"
    test_file: str = "wiki.test.raw"

    folder_name: ClassVar[str] = "wikitext"
    urls: ClassVar[dict[str, str]] = {
        "archive": "https://wikitext.smerity.com/wikitext-103-raw-v1.zip"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("context_length", self.context_length, 1)
        require_integer("target_length", self.target_length, 1)
        files = self._files
        require(
            all(files.values()) and len(set(files.values())) == len(files),
            f"train_file, validation_file and test_file must be three names, not {files}.",
        )

    @property
    def _files(self) -> dict[str, str]:
        names = (self.train_file, self.validation_file, self.test_file)
        return dict(zip(("train", "validation", "test"), names, strict=True))

    @property
    def records_name(self) -> str:
        """The files' names."""
        return files_name(*self._files.values())

    def read(self, folder: pathlib.Path, split: str) -> Records:
        """Reads the articles of a split; see `TextTask.read`."""
        text = read_text(require_file(folder, self._files[split]))
        starts = sorted({0, *(match.start() for match in _HEADING.finditer(text)), len(text)})
        articles = [text[a:b] for a, b in zip(starts, starts[1:], strict=False)]
        return Records(tuple(Record(f"{split}:{i}", text) for i, text in enumerate(articles)))

    def make_source(self, records: Records, tokenizer: TextTokenizer) -> TextSource:
        """Makes a sample of each chunk; see `TextTask.make_source`."""
        length = self.context_length + self.target_length
        articles = encode_texts(tokenizer, (record.context for record in records.kept))
        ids = np.concatenate(articles)
        chunks = ids[: len(ids) // length * length].reshape(-1, length)
        none = np.zeros(0, np.int32)
        return chunk_source(chunks, self.context_length, none, tokenizer, records.skipped)

    @property
    def context_buckets(self) -> tuple[int, ...]:
        """All contexts have one length."""
        return (self.context_length,)

    @property
    def query_buckets(self) -> tuple[int, ...]:
        """All targets have one length."""
        return (self.target_length,)
