"""bAbI: questions about short stories (Weston et al. 2015, arXiv 1502.05698)."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from gradmem_jax.checks import require, require_choice, require_integer
from gradmem_jax.data.babi.copies import varied_copies
from gradmem_jax.data.babi.questions import questions
from gradmem_jax.data.prepared import is_prepared
from gradmem_jax.data.records import (
    Record,
    Records,
    Skipped,
    find_file,
    read_text,
    require_file,
    split_names,
    warn_once,
)
from gradmem_jax.data.text_source import Query, TextSource, encode_target
from gradmem_jax.data.text_task import QuestionTask
from gradmem_jax.storage.reading import largest_unpacked
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer

VARIANTS = ("en", "en-10k")


class Story(NamedTuple):
    """A story: its lines as one text, its questions, and what of it is damaged."""

    content: str
    records: list[Record]
    skipped: list[Skipped]


@dataclasses.dataclass(frozen=True)
class BabiConfig(QuestionTask):
    """One of the twenty bAbI tasks.

    The statements of the story so far, in one line, are the context; each question is a sample of
    its own, and several answers (`milk,football`) are one target. A tenth of the different
    training stories, the same for ever, is the validation split. `data_dir` is the published
    archive's folder, its files packed or not.

    The archive's 10k training file of a task may be missing; then `en-valid-10k` (a tenth of it)
    and the `en` training file stand in for it, stories in both taken once, and a warning says so.

    Attributes:
        qa: which task, 1 to 20; the paper uses 1 to 5.
        variant: "en-10k" (10,000 training questions) or "en" (1,000).
        varied_copies: how many times each training question comes again with other names, verbs
            and order of statements, see `copies.py`, always in the same way; tasks 1 to 5
            only. Questions for validation and test stay as they are, and what would repeat one
            of them about the same context is left out.
        queries_per_context: R, queries of a training context: the published question and others of
            `query_tasks`, drawn among those that the story answers, see `questions.py`; tasks
            1 to 5 only. Where a story answers fewer, the rest is left empty; questions of
            validation and test are left out.
        query_tasks: the tasks, 1 to 5, whose forms of questions the others have; () is `qa` alone.
            A story of task 2 answers the questions of task 1 too, one of task 3 those of 1 and 2.
        ask_holders: whether the others may ask who has a thing ("Who has the milk?", perhaps
            "nobody"): no question of the tasks, but half of the way to where a thing is.

    Examples:
        >>> from gradmem_jax.data.babi.task import BabiConfig
        >>> BabiConfig(qa=2, data_dir="data/babi").folder_name
        'babi'
    """

    qa: int = 1
    variant: str = "en-10k"
    varied_copies: int = 0
    queries_per_context: int = 1
    query_tasks: tuple[int, ...] = ()
    ask_holders: bool = False

    folder_name: ClassVar[str] = "babi"
    urls: ClassVar[dict[str, str]] = {
        "archive": "https://s3.amazonaws.com/text-datasets/babi_tasks_1-20_v1-2.tar.gz"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("qa", self.qa, tuple(range(1, 21)))
        require_choice("variant", self.variant, VARIANTS)
        require_integer("varied_copies", self.varied_copies, 0)
        require(
            self.qa <= 5 or not self.varied_copies,
            f"varied_copies={self.varied_copies} needs names that can change places, as they can "
            f"in tasks 1 to 5; leave it 0 for qa={self.qa}.",
        )
        require_integer("queries_per_context", self.queries_per_context, 1)
        for name in ("queries_per_context", "query_tasks", "ask_holders"):
            value, default = getattr(self, name), getattr(type(self), name)
            require(
                self.qa <= 5 or value == default,
                f"{name}={value} needs stories that can be played, as those of tasks 1 to 5 can; "
                f"leave it {default} for qa={self.qa}.",
            )
        for qa in self.query_tasks:
            require_choice("query_tasks", qa, tuple(range(1, 6)))

    @property
    def records_name(self) -> str:
        """Task, variant and varied copies."""
        copies = f"_copies{self.varied_copies}" if self.varied_copies else ""
        return f"qa{self.qa}_{self.variant}{copies}"

    def record_task(self) -> "BabiConfig":
        """Returns the task with the published questions only; see `TextTask.record_task`."""
        task = super().record_task()
        return dataclasses.replace(task, queries_per_context=1, query_tasks=(), ask_holders=False)

    def word_task(self) -> "BabiConfig":
        """Returns the task without varied copies, whose words are those of the stories."""
        task = dataclasses.replace(super().record_task(), queries_per_context=1)
        if is_prepared(task.data_dir):  # with its copies, as they are
            return task
        return dataclasses.replace(task, varied_copies=0)

    def texts(self, record: Record) -> tuple[str, ...]:
        """Returns context, question and answers, and other questions with their answers."""
        if not (self.query_tasks or self.ask_holders):
            return super().texts(record)
        others = self._questions(record.context)
        return (*super().texts(record), *others, *others.values())

    def read(self, folder: pathlib.Path, split: str) -> Records:
        """Reads the records of a split; see `TextTask.read`."""
        if split == "test":
            return _join(_read_stories(require_file(folder, self._pattern("test"))))
        stories: list[Story] = []
        for path in self._training_files(folder):
            known = {story.content for story in stories}
            stories += [story for story in _read_stories(path) if story.content not in known]
        split_of = split_names((story.content for story in stories), ("validation",))

        def of_split(name: str) -> Records:
            return _join([s for s in stories if split_of[s.content] == name])

        records = of_split(split)
        if split != "train" or not self.varied_copies:
            return records
        others = of_split("validation"), self.read(folder, "test")
        held_out = {_asked(record) for other in others for record in other.kept}
        copies = varied_copies(records.kept, self.varied_copies)
        kept = (copy for copy in copies if _asked(copy) not in held_out)
        return records._replace(kept=(*records.kept, *kept))

    def source(self, split: str, num_samples: int | None = None) -> TextSource:
        """Returns the samples of a split; see `TextTask.source`."""
        task = self if split == "train" else dataclasses.replace(self, queries_per_context=1)
        return super(BabiConfig, task).source(split, num_samples)

    def make_source(self, records: Records, tokenizer: TextTokenizer) -> TextSource:
        """Makes a sample of each question; see `TextTask.make_source`."""
        source = super().make_source(records, tokenizer)
        if self.queries_per_context == 1:
            return source
        others = [r for split in ("validation", "test") for r in self.records(split).kept]
        held_out = {_asked(record) for record in others}
        encode = functools.cache(lambda q, a: encode_target(tokenizer, self.prompt(q), a))
        samples = [encode(*asked) for r in others for asked in self._questions(r.context).items()]
        longest = max([source.longest_query, *(len(query.ids) for query in samples if query)])
        empty = Query(np.zeros(0, np.int32), 0)

        def more_queries(index: int) -> list[Query]:
            record = source.record(index)
            asked = [
                (question, answer)
                for question, answer in self._questions(record.context).items()
                if question != record.question and (record.context, question) not in held_out
            ]
            drawn = np.random.default_rng(index).permutation(len(asked))
            encoded = [encode(*asked[i]) for i in drawn]
            fitting = [query for query in encoded if query and len(query.ids) <= longest]
            count = self.queries_per_context - 1
            return (fitting + [empty] * count)[:count]

        return dataclasses.replace(
            source, more_queries=more_queries, longest_other=longest, pad_id=tokenizer.pad_id
        )

    def _questions(self, context: str) -> dict[str, str]:
        """What a training story may be asked, with the answers."""
        tasks = self.query_tasks or (self.qa,)
        return questions(context, *tasks, holders=self.ask_holders)

    def _pattern(self, part: str, variant: str = "") -> str:
        return f"{variant or self.variant}/qa{self.qa}_*{part}.txt"

    def _training_files(self, folder: pathlib.Path) -> list[pathlib.Path]:
        whole = find_file(folder, self._pattern("train"))
        if whole or self.variant == "en":
            return [whole or require_file(folder, self._pattern("train"))]
        patterns = (self._pattern("valid", "en-valid-10k"), self._pattern("train", "en"))
        found = [path for path in (find_file(folder, pattern) for pattern in patterns) if path]
        if not found:
            raise ValueError(f"{folder} has no file {self._pattern('train')}, packed or not.")
        names = " and ".join(f"{path.parent.name}/{path.name}" for path in found)
        warn_once(
            f"{folder} has no 10k training file of task {self.qa}; training on {names} instead"
        )
        return found


def _read_stories(path: pathlib.Path) -> list[Story]:
    """Reads a file: a line numbered 1 begins a story; tabs part question, answer and facts."""
    name = path.name.removesuffix(".gz").removesuffix(".txt")
    stories: list[list[tuple[str, str]]] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.startswith("1 ") or not stories:
            stories.append([])
        if line.strip():
            stories[-1].append((f"{name}:{number}", line))
    characters = sum(map(_context_characters, stories))
    limit = largest_unpacked(path.stat().st_size)
    require(
        characters <= limit,
        f"the questions of {path} have {characters} characters of contexts, and {limit} are "
        "allowed for a file of its size. Ask less of a story, or write shorter ones.",
    )
    return [_read_story(lines) for lines in stories if lines]


def _context_characters(lines: Sequence[tuple[str, str]]) -> int:
    """How many characters the contexts of a story's questions have, at most."""
    so_far, contexts = 0, 0
    for _, line in lines:
        so_far += len(line)
        contexts += so_far if "\t" in line else 0
    return contexts


def _read_story(lines: Sequence[tuple[str, str]]) -> Story:
    """Reads the story of (id, line) pairs; behind a damaged line nothing of it is used."""
    facts: list[str] = []
    story = Story("\n".join(line for _, line in lines), [], [])
    damaged = ""
    for expected, (line_id, line) in enumerate(lines, 1):
        number, _, text = line.strip().partition(" ")
        question, *rest = (part.strip() for part in text.split("\t"))
        is_question = bool(rest) or question.endswith("?")
        if not damaged and number != str(expected):
            damaged = line_id
            reason = f"line number {expected} expected, not {number[:20]!r}"
        elif damaged:
            reason = f"its story is damaged in line {damaged}" if is_question else ""
        elif not is_question:
            facts.append(question)
            reason = "" if question else "the line is empty"
        elif not rest or not rest[0]:
            reason = "the question has no answer"
        elif not question or not facts:
            reason = "the question is empty" if facts else "the question comes before any story"
        else:
            story.records.append(Record(line_id, " ".join(facts), question, (rest[0],)))
            reason = ""
        if reason:
            story.skipped.append(Skipped(line_id, reason))
    return story


def _asked(record: Record) -> tuple[str, str]:
    return record.context, record.question


def _join(stories: Sequence[Story]) -> Records:
    return Records(
        tuple(record for story in stories for record in story.records),
        tuple(skipped for story in stories for skipped in story.skipped),
    )
