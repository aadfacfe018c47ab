"""Answers from memory files: questions to ids, ids to answers."""

import contextlib
import fnmatch
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import jax
import numpy as np

from experiments.answers.contexts import bucket, warn_of_unknown
from experiments.answers.open_model import OpenModel
from experiments.program.console import say
from gradmem_jax.checks import require
from gradmem_jax.data.task import starting_ids, text_of
from gradmem_jax.foreign_text import is_text, one_line, shown
from gradmem_jax.memory.generate import generate
from gradmem_jax.memory.interface import Memory
from gradmem_jax.storage.fingerprint import take_fingerprint
from gradmem_jax.storage.memory_file import Header, load_memory


def encode_questions(
    opened: OpenModel, memory: Memory, questions: Sequence[str], max_new_tokens: int
) -> np.ndarray:
    """Tokenises questions: int32 [R, Q], padded to one of few lengths.

    Raises:
        ValueError: a question is empty, holds padding, or leaves no room for an answer.
    """
    config = opened.model.config
    positions = opened.model.num_memory_positions(memory)
    limit = config.lm.max_positions - positions - max_new_tokens
    rows = []
    for question in questions:
        require(bool(question.strip()), f"the question {shown(question)} is empty; ask something.")
        require(is_text(question), f"the question {shown(question)} is not UTF-8 text.")
        text = opened.prompt(question)
        ids = starting_ids(opened.tokenizer, text)
        require(len(ids) > 0, f"the question {shown(question)} has no tokens; ask something else.")
        require(
            config.pad_id not in ids,
            f"the question {shown(question)} holds the padding token {config.pad_id}, which stands "
            "for no text; leave it out.",
        )
        require(
            len(ids) <= limit,
            f"the question {shown(question)} has {len(ids)} tokens; the model has room for {limit} "
            f"beside the memory and {max_new_tokens} new ones. Shorten it or lower "
            "--max_new_tokens.",
        )
        rows.append(ids)
    length = bucket(max(map(len, rows)), limit)
    padded = np.full((len(rows), length), config.pad_id, np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded


def answer(
    opened: OpenModel, memory: Memory, questions: Sequence[str], max_new_tokens: int = 32
) -> list[list[str]]:
    """Answers questions from memory alone, and warns of words that the model does not know.

    Args:
        opened: the model.
        memory: of B contexts.
        questions: R texts.
        max_new_tokens: longest answer.

    Returns:
        The R answers of each of the B contexts.

    Raises:
        ValueError: see `encode_questions`.
    """
    ids = encode_questions(opened, memory, questions, max_new_tokens)
    for question in questions:
        name = f"the question {shown(question)}"
        warn_of_unknown(name, opened.prompt(question), opened.tokenizer)
    return answer_ids(opened, memory, ids, max_new_tokens)


def answer_ids(
    opened: OpenModel, memory: Memory, ids: np.ndarray, max_new_tokens: int
) -> list[list[str]]:
    """Does the same with questions int32 [R, Q] of `encode_questions`."""
    ids = np.broadcast_to(ids, (len(jax.tree.leaves(memory)[0]), *ids.shape))
    new = generate(
        opened.model,
        opened.params,
        memory,
        ids,
        max_new_tokens,
        stop_id=opened.end_id,
        never=opened.never,
    )
    return [[_decode(opened, row) for row in rows] for rows in np.asarray(new)]


def _decode(opened: OpenModel, ids: np.ndarray) -> str:
    ends = np.flatnonzero(ids == opened.end_id)
    return text_of(opened.tokenizer, ids[: ends[0]] if len(ends) else ids).strip()


def choose_contexts(path: str, header: Header, pattern: str) -> list[int]:
    """Returns which contexts of a file have names that fit a pattern.

    Raises:
        ValueError: none of them.
    """
    names = [context.name for context in header.contexts]
    chosen = [
        i for i, name in enumerate(names) if name == pattern or fnmatch.fnmatchcase(name, pattern)
    ]
    some = one_line(repr(names[:20]), 600)
    require(bool(chosen), f"{path} has no context {pattern!r}; it has {some}.")
    return chosen


def open_memories(
    path: str, opened: OpenModel, header: Header, chosen: Sequence[int], batch_size: int
) -> Iterator[tuple[list[str], Memory]]:
    """Yields names and memory of chosen contexts, `batch_size` at once.

    Raises:
        ValueError: the file is damaged or of another model.
    """
    fingerprint = take_fingerprint(opened.model, opened.params)
    for start in range(0, len(chosen), batch_size):
        indices = np.array(chosen[start : start + batch_size])
        span = slice(int(indices[0]), int(indices[-1]) + 1)
        memory = load_memory(path, opened.model, opened.params, span, fingerprint=fingerprint)
        rows = indices - span.start
        names = [header.contexts[i].name for i in indices]
        yield names, jax.tree.map(lambda x, rows=rows: x[rows], memory)


def show(
    names: Sequence[str],
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    with_names: bool,
    as_json: bool,
) -> None:
    """Prints the answers of some contexts, a line each, in which nothing steers the terminal."""
    for name, row in zip(names, answers, strict=True):
        for question, text in zip(questions, row, strict=True):
            if as_json:
                fields = {"context": name, "question": question, "answer": text}
                say(json.dumps(fields, ensure_ascii=False))
            else:
                parts = [f"{name}: "] if with_names else []
                say("".join(map(_in_a_line, [*parts, f"{question} -> {text}"])))


def _in_a_line(text: str) -> str:
    return one_line(text, len(text))


def ask_in_a_loop(
    ask: Callable[[str], None], prompt: str = "? ", errors: IO[str] = sys.stderr
) -> None:
    """Reads questions from the keyboard, until an empty line, the end of the input or Ctrl-C.

    Args:
        ask: answers a question; one that it refuses is reported and the loop goes on.
        prompt: what is printed before each question.
        errors: where to report.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # something was read from it before
            sys.stdin.reconfigure(errors="surrogateescape")  # `is_text` finds what is wrong
    while True:
        try:
            question = input(prompt).removeprefix("\ufeff")  # the mark of a piped file
        except (EOFError, KeyboardInterrupt):
            return
        if not question.strip():
            return
        try:
            ask(question)
        except ValueError as error:
            print(one_line(str(error)), file=errors, flush=True)
