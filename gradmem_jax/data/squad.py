"""SQuAD v1.1: questions whose answers stand in a paragraph (Rajpurkar et al. 2016)."""

import bisect
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from gradmem_jax.checks import require
from gradmem_jax.data.records import (
    Record,
    Records,
    Skipped,
    files_name,
    find_file,
    read_text,
    require_file,
    split_names,
    warn_once,
)
from gradmem_jax.data.text_task import QuestionTask
from gradmem_jax.foreign_text import is_text
from gradmem_jax.storage.reading import parse_json

_ABBREVIATION = r"(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St|Jr|Sr|No|vs))(?<!\bMrs)"
_SENTENCE_END = re.compile(rf"{_ABBREVIATION}[.!?]['\")\]]*\s+(?=['\"(\[]*[A-Z0-9])|\n+")


@dataclasses.dataclass(frozen=True)
class SquadConfig(QuestionTask):
    """SQuAD v1.1, or the answerable questions of v2.0.

    The query is `question: ... answer:`, its target a blank and the first reference answer; all
    of them are in `source(...).record(i)`. A tenth of the articles of the training file is the
    validation split, and the development file is the test split. If one of the two files is
    missing, the articles of the other are divided among train, validation and test, and a warning
    says so. A file of too few articles to divide is divided by paragraphs.

    Attributes:
        context: "paragraph", or "sentence" for the sentence that holds the first answer (all of
            them from its start to its end if it crosses sentences). A sentence ends at a line
            break, and at `.`, `!` or `?`, with closing quotes or brackets, before white space and
            a letter A to Z or a digit; but not behind a single capital letter (`J.`, `U.S.`) or
            Dr, Mr, Mrs, Ms, St, Jr, Sr, No, vs.
        train_file: training file in `data_dir`, packed or not.
        test_file: development file.

    Examples:
        >>> from gradmem_jax.data.squad import SquadConfig
        >>> SquadConfig(context="sentence", data_dir="data/squad").context
        'sentence'
    """

    context: Literal["paragraph", "sentence"] = "paragraph"
    train_file: str = "train-v1.1.json"
    test_file: str = "dev-v1.1.json"

    folder_name: ClassVar[str] = "squad"
    urls: ClassVar[dict[str, str]] = {
        part: f"https://rajpurkar.github.io/SQuAD-explorer/dataset/{part}-v1.1.json"
        for part in ("train", "dev")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.train_file and self.test_file) and self.train_file != self.test_file,
            f"train_file={self.train_file!r} and test_file={self.test_file!r} must be two names; "
            "one of the files may be missing.",
        )

    @property
    def records_name(self) -> str:
        """The files' names."""
        return files_name(self.train_file, self.test_file)

    def downloaded(self, paths: dict[str, str]) -> "SquadConfig":
        """Returns the task with its files where a download of `urls` put them."""
        train, test = str(paths["train"]), str(paths["dev"])
        folder = str(pathlib.Path(train).parent)
        return dataclasses.replace(self, data_dir=folder, train_file=train, test_file=test)

    def read(self, folder: pathlib.Path, split: str) -> Records:
        """Reads the records of a split; see `TextTask.read`."""
        train, test = find_file(folder, self.train_file), find_file(folder, self.test_file)
        held_out: tuple[str, ...] = ("validation",)
        if train and test:
            path = test if split == "test" else train
        else:
            path = train or test or require_file(folder, self.train_file)
            held_out = ("validation", "test")
            warn_once(
                f"{folder} has not both of {self.train_file} and {self.test_file}; the articles of "
                f"{path.name} are divided among all splits"
            )
        articles = _read_articles(path)
        if split in ("train", *held_out):
            articles = _of_split(articles, split, held_out, path)
        found = [
            record
            for number, article in enumerate(articles)
            for record in _read_article(article, str(article.get("title") or f"article {number}"))
        ]
        return Records(
            tuple(record for record in found if isinstance(record, Record)),
            tuple(record for record in found if isinstance(record, Skipped)),
        )

    def choose_context(self, record: Record) -> Record:
        """Returns a record with the paragraph, or with the sentence of its first answer."""
        if self.context == "paragraph":
            return record
        start = record.answer_starts[0]
        context = sentences_around(record.context, start, start + len(record.answers[0]))
        return record._replace(context=context, answer_starts=())

    def prompt(self, question: str) -> str:
        """Returns the text that the answer of a question continues."""
        return f"question: {question} answer:"


def sentences_around(text: str, start: int, end: int) -> str:
    """Returns the sentences of a text that hold its characters from start to end."""
    bounds = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    first = bisect.bisect_right(bounds, start) - 1
    last = bisect.bisect_left(bounds, end)
    return text[bounds[first] : bounds[last]].strip()


def _read_articles(path: pathlib.Path) -> list[dict[str, Any]]:
    text = read_text(path)
    try:
        articles = parse_json(text, "the file")["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no SQuAD file ({error!r}); get the file again.") from error
    fits = isinstance(articles, list) and all(
        isinstance(article, dict) and isinstance(article.get("paragraphs"), list)
        for article in articles
    )
    require(fits and bool(articles), f"{path} has no articles with paragraphs; get it again.")
    return articles


def _of_split(
    articles: list[dict[str, Any]], split: str, held_out: tuple[str, ...], path: pathlib.Path
) -> list[dict[str, Any]]:
    """Returns the articles of a split of a file; those of one paragraph if they are too few."""
    needed = 1 + len(held_out)
    names = [_title(article) for article in articles]
    if len(set(names)) < needed:
        articles = [
            article | {"paragraphs": [p]} for article in articles for p in article["paragraphs"]
        ]
        names = [_content(article) for article in articles]
    require(
        len(set(names)) >= needed,
        f"{path} has {len(set(names))} different paragraphs, too few to divide among train and "
        f"{' and '.join(held_out)}; give {needed} or more, or training and test questions in two "
        "files.",
    )
    split_of = split_names(names, held_out)
    return [article for article, own in zip(articles, names, strict=True) if split_of[own] == split]


def _title(article: dict[str, Any]) -> str:
    """What an article is told from others by."""
    return str(article.get("title") or _content(article))


def _content(article: dict[str, Any]) -> str:
    paragraphs = article["paragraphs"]
    return str([p.get("context") if isinstance(p, dict) else p for p in paragraphs])


def _read_article(article: dict[str, Any], title: str) -> Iterator[Record | Skipped]:
    """Reads the questions of an article, damaged ones as `Skipped`."""
    for i, paragraph in enumerate(article["paragraphs"]):
        name = f"{title}, paragraph {i}"
        try:
            context, questions = paragraph["context"], list(paragraph["qas"])
        except (KeyError, TypeError) as error:
            yield Skipped(name, f"no context or questions: {error!r}")
            continue
        for j, question in enumerate(questions):
            given = question.get("id") if isinstance(question, dict) else None
            question_id = str(given or f"{name}, question {j}")
            try:
                yield _read_question(question_id, context, question)
            except (KeyError, TypeError, AttributeError) as error:
                yield Skipped(question_id, f"a field is missing or wrong: {error!r}")


def _read_question(question_id: str, context: str, question: dict[str, Any]) -> Record | Skipped:
    if question.get("is_impossible"):
        return Skipped(question_id, "the question has no answer (is_impossible)")
    answers = [(answer["text"], answer["answer_start"]) for answer in question["answers"]]
    text = question["question"].strip()
    if not context.strip() or not text:
        return Skipped(question_id, f"the {'question' if context.strip() else 'context'} is empty")
    if not answers or not all(answer.strip() for answer, _ in answers):
        return Skipped(question_id, "an answer is missing or empty")
    if not is_text("".join((context, text, *(answer for answer, _ in answers)))):
        return Skipped(question_id, "it is not UTF-8 text")
    for answer, start in answers:
        if not 0 <= start < len(context):
            return Skipped(question_id, f"answer_start={start} is outside of the context")
        if not context.startswith(answer, start):
            where = "at its answer_start" if answer in context else ""
            return Skipped(question_id, f"{answer[:40]!r} is not in the context {where}".strip())
    return Record(
        question_id,
        context,
        text,
        tuple(answer for answer, _ in answers),
        tuple(start for _, start in answers),
    )
