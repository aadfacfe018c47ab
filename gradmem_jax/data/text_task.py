"""What all tasks over texts on disk have in common."""

import dataclasses
import functools
import pathlib
from typing import Any, ClassVar, Literal

import numpy as np

from gradmem_jax.checks import check_fields, require, require_choice, require_integer
from gradmem_jax.data.prepared import is_prepared, read_prepared
from gradmem_jax.data.records import SPLITS, Record, Records, data_folder, log_skipped
from gradmem_jax.data.text_source import TextSource, length_buckets, limit_contexts, question_source
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer, load_tokenizer, word_tokenizer


class PlainTexts:
    """Base of tasks whose contexts are texts in one piece, without kinds of tokens."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of its texts."""
        raise NotImplementedError

    @property
    def pad_id(self) -> int:
        """The id that fills contexts and queries."""
        return self.tokenizer.pad_id

    @property
    def vocab_size(self) -> int:
        """V, ids of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def kinds(self) -> tuple[str, ...]:
        """No kinds of context tokens."""
        return ()

    @property
    def num_segments(self) -> int:
        """A context comes in one piece."""
        return 1


@dataclasses.dataclass(frozen=True)
class TextTask(PlainTexts):
    """Base of the tasks over texts on disk; satisfies `task.Task`.

    Files are read and tokenised once for a task and split, when they are first needed. A record
    that cannot be used is counted, named in a warning and in `source(...).skipped`.

    Attributes:
        data_dir: folder of the raw files, or one that `text_tfds.prepare` wrote; by default the
            folder of the task inside of the environment variable GRADMEM_DATA_DIR.
        tokenizer_path: a pretrained tokenizer, see `load_tokenizer`; by default an id for each
            word and punctuation mark of the task's files, those of all splits, so that no word of
            an evaluation is unknown.
        pad_token: what fills contexts, see `load_tokenizer`.
        add_begin_token: whether contexts and prompts of questions begin with a token, as the
            tokenizer's own files say: where they name none, nothing is added.
    """

    data_dir: str = ""
    tokenizer_path: str = ""
    pad_token: str = ""
    add_begin_token: bool = False

    folder_name: ClassVar[str] = ""
    urls: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def records_name(self) -> str:
        """A name of the raw records: of the fields that decide what `read` returns."""
        raise NotImplementedError

    @property
    def data_name(self) -> str:
        """A name of the raw records, another one for each task."""
        return f"{self.folder_name}_{self.records_name}"

    def read(self, folder: pathlib.Path, split: str) -> Records:
        """Reads the records of a split from raw files; the only reader of their format.

        Args:
            folder: where the files are.
            split: "train", "validation" or "test".

        Raises:
            ValueError: a file is missing or damaged as a whole.
        """
        raise NotImplementedError

    def downloaded(self, paths: dict[str, str]) -> "TextTask":
        """Returns the task with its files where a download of `urls` put them."""
        return dataclasses.replace(self, data_dir=str(paths["archive"]))

    def make_source(self, records: Records, tokenizer: TextTokenizer) -> TextSource:
        """Makes the samples of records."""
        raise NotImplementedError

    def allowed(self, source: TextSource) -> TextSource:
        """Returns the samples of `make_source` that the task allows: here, all."""
        return source

    def texts(self, record: Record) -> tuple[str, ...]:
        """Returns the texts of a record that are tokenised."""
        return (record.context,)

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of its texts."""
        if self.tokenizer_path:
            tokenizer = read_tokenizer(self.tokenizer_path, pad_token=self.pad_token)
            begin_id = tokenizer.begin_id if self.add_begin_token else None
            return dataclasses.replace(tokenizer, begin_id=begin_id)
        return _word_tokenizer(self.word_task())

    @property
    def context_buckets(self) -> tuple[int, ...]:
        """Lengths that contexts are padded to."""
        raise NotImplementedError

    @property
    def query_buckets(self) -> tuple[int, ...]:
        """Lengths that queries with targets are padded to."""
        raise NotImplementedError

    def located(self) -> Any:
        """Returns the task with `data_dir` spelled out, whatever the environment says later."""
        folder = data_folder(self.data_dir, self.folder_name)
        return dataclasses.replace(self, data_dir=str(folder))

    def record_task(self) -> Any:
        """Returns the task without the fields that do not change its records.

        Tasks that are equal so far, such as the stages of a curriculum, share what is read.
        """
        return dataclasses.replace(
            self.located(), tokenizer_path="", pad_token="", add_begin_token=False
        )

    def sample_task(self) -> Any:
        """Returns the task without the fields that only `allowed` looks at."""
        return self

    def word_task(self) -> Any:
        """Returns a task whose records have the same words; the one that is quickest to read."""
        return self.record_task()

    def records(self, split: str) -> Records:
        """Returns the records of a split, as they are before tokenisation.

        Raises:
            ValueError: there is no such split, or its files are missing or damaged.
        """
        require_choice("split", split, SPLITS)
        return _records(self.record_task(), split)

    def source(self, split: str, num_samples: int | None = None) -> TextSource:
        """Returns the samples of a split, the first `num_samples` only if given.

        Args:
            split: "train", "validation" or "test".
            num_samples: an upper bound.

        Raises:
            ValueError: there is no such split, its files are missing or damaged, or no sample is
                left.
        """
        require_choice("split", split, SPLITS)
        if num_samples is not None:
            require_integer("num_samples", num_samples, 1)
        return _source(self.located(), split).first(num_samples)


@dataclasses.dataclass(frozen=True)
class QuestionTask(TextTask):
    """Base of the tasks of questions about a context.

    Attributes:
        max_context_tokens: longest context; None allows any. Contexts are never cut, since that
            may take away the answer.
        long_contexts: what becomes of longer ones: "skip" leaves them out and counts them, in
            evaluation too; "error" raises ValueError.

    Examples:
        >>> from gradmem_jax.data.records import Record, Records
        >>> from gradmem_jax.data.text_task import QuestionTask
        >>> @dataclasses.dataclass(frozen=True)
        ... class Notes(QuestionTask):
        ...     folder_name = "notes"
        ...     records_name = "notes"
        ...
        ...     def read(self, folder, split):
        ...         return Records((Record(f"{split} 0", "Tea is hot .", "Tea is", ("hot",)),))
        >>> os.makedirs("notes", exist_ok=True)
        >>> Notes(data_dir="notes").source("train").record(0).answers
        ('hot',)
    """

    max_context_tokens: int | None = None
    long_contexts: Literal["skip", "error"] = "skip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_context_tokens is not None:
            require_integer("max_context_tokens", self.max_context_tokens, 1)

    def record_task(self) -> Any:
        """Returns the task with contexts of any length; see `TextTask.record_task`."""
        return super().record_task().sample_task()

    def sample_task(self) -> Any:
        """Returns the task with contexts of any length; see `TextTask.sample_task`."""
        return dataclasses.replace(self, max_context_tokens=None, long_contexts="skip")

    def choose_context(self, record: Record) -> Record:
        """Returns a record with the part of its context that the task writes into memory."""
        return record

    def prompt(self, question: str) -> str:
        """Returns the text that the answer of a question continues."""
        return question

    def make_source(self, records: Records, tokenizer: TextTokenizer) -> TextSource:
        """Makes a sample of each question; see `TextTask.make_source`."""
        chosen = records._replace(kept=tuple(map(self.choose_context, records.kept)))
        return question_source(chosen, tokenizer, self.prompt)

    def allowed(self, source: TextSource) -> TextSource:
        """Returns the samples with contexts short enough; see `TextTask.allowed`."""
        return limit_contexts(source, self.max_context_tokens, self.long_contexts)

    def texts(self, record: Record) -> tuple[str, ...]:
        """Returns context, question with its template, and answers."""
        chosen = self.choose_context(record)
        return (chosen.context, self.prompt(chosen.question), *chosen.answers)

    @property
    def context_buckets(self) -> tuple[int, ...]:
        """The few lengths that pad the contexts of all splits least."""
        return _buckets(self.located())[0]

    @property
    def query_buckets(self) -> tuple[int, ...]:
        """One length, which holds any query with its target."""
        return _buckets(self.located())[1]


@functools.lru_cache(maxsize=2 * len(SPLITS))  # those of `record_task` and `word_task`
def _records(task: TextTask, split: str) -> Records:
    folder = pathlib.Path(task.data_dir)
    if is_prepared(folder):
        return read_prepared(folder, split, task.data_name)
    return task.read(folder, split)


read_tokenizer = functools.lru_cache(maxsize=4)(load_tokenizer)


@functools.lru_cache(maxsize=4)
def _word_tokenizer(task: TextTask) -> TextTokenizer:
    words: set[str] = set()
    for split in SPLITS:
        for record in _records(task, split).kept:
            words.update(word for text in task.texts(record) for word in text.split())
    return word_tokenizer(words)


@functools.lru_cache(maxsize=2 * len(SPLITS))
def _samples(task: TextTask, split: str) -> TextSource:
    return task.make_source(task.records(split), task.tokenizer)


@functools.lru_cache(maxsize=12)
def _source(task: TextTask, split: str) -> TextSource:
    source = task.allowed(_samples(task.sample_task(), split))
    name = f"{type(task).__name__}, {split}"
    log_skipped(name, source.skipped)
    skipped = len(source.skipped)
    why = f"of {skipped} records; see the warning above" if skipped else "in its files"
    require(len(source) > 0, f"{name}: no sample is left {why}. Give more of its questions.")
    return source


@functools.lru_cache(maxsize=4)
def _buckets(task: QuestionTask) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sources = [_source(task, split) for split in SPLITS]
    contexts = np.concatenate([source.context_lengths for source in sources])
    queries = np.array([source.longest_query for source in sources])
    return length_buckets(contexts), length_buckets(queries, count=1)
