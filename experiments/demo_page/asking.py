"""Questions to a memory, beside what the same model says without it and with the whole text."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers.answering import answer_ids, encode_questions
from experiments.answers.contexts import bucket, unknown_words
from experiments.answers.open_model import OpenModel
from experiments.demo_page.kept import Kept
from experiments.demo_page.tokens import token_name
from experiments.demo_page.traces import Trace
from gradmem_jax.checks import require
from gradmem_jax.memory.interface import Memory

MAX_NEW_TOKENS = 24
NUM_LIKELY = 5
_MOST_ANSWERS = 64


class Answer(NamedTuple):
    """An answer.

    Attributes:
        source: what it comes from.
        text: the answer; "" if there is none.
        likely: the likeliest first tokens of it, with their probabilities.
        note: what is to be said of it.
    """

    source: str
    text: str
    likely: tuple[tuple[str, float], ...]
    note: str = ""


class Answers:
    """All answers of the page; none is computed twice as long as it is kept."""

    def __init__(self) -> None:
        """Keeps none yet."""
        self._kept: Kept[list[Answer]] = Kept(_MOST_ANSWERS)

    def ask(self, trace: Trace, step: int, question: str) -> list[Answer]:
        """Asks the memory after some steps, an empty one, and the model with the whole text.

        Args:
            trace: the WRITE.
            step: which of its steps.
            question: the question.

        Raises:
            ValueError: the question is empty or too long.
        """
        require(bool(question.strip()), "Ask something.")
        step = min(step, trace.last)
        key = (trace.key, step, question)
        found = self._kept.get(key)
        return found if found is not None else self._kept.put(key, _ask(trace, step, question))


def question_notes(trace: Trace, question: str) -> str:
    """What is to be said of the words of a question."""
    return unknown_words(question, trace.model.opened.tokenizer)


def _ask(trace: Trace, step: int, question: str) -> list[Answer]:
    opened = trace.model.opened
    name = f"Memory after {step} of {trace.num_steps} steps" if trace.texts else "Memory"
    found = [
        _answer(opened, trace.steps[step].memory, question, name),
        _answer(opened, trace.control, question, "K = 0, nothing written"),
    ]
    full = trace.model.full_context
    if full is not None:
        found.append(_ask_full_context(trace, full, question))
    return found


def _ask_full_context(trace: Trace, full: OpenModel, question: str) -> Answer:
    name = "Whole text before the question"
    if not trace.knows_all_texts:
        return Answer(name, "", (), "The first text came from a file; it is not known here.")
    config = full.model.config
    ids = np.concatenate([text.ids for text in trace.texts])
    room = config.lm.max_positions - MAX_NEW_TOKENS - 1
    if len(ids) > room:
        return Answer(name, "", (), "The text leaves no room for a question.")
    row = np.full((1, bucket(len(ids), room)), config.pad_id, np.int32)
    row[0, : len(ids)] = ids
    memory, _ = full.model.write_memory(full.params, row, num_steps=1)
    note = (
        ""
        if trace.model.was_pretrained
        else "This model learned to read from memory, never from a whole text."
    )
    try:
        return _answer(full, memory, question, name, note)
    except ValueError as error:  # the question does not fit behind the text
        return Answer(name, "", (), str(error))


def _answer(
    opened: OpenModel, memory: Memory, question: str, source: str, note: str = ""
) -> Answer:
    memory = jax.tree.map(jnp.asarray, memory)
    ids = encode_questions(opened, memory, [question], MAX_NEW_TOKENS)
    ((text,),) = answer_ids(opened, memory, ids, MAX_NEW_TOKENS)
    return Answer(source, text, _likely(opened, memory, ids), note)


def _likely(opened: OpenModel, memory: Memory, ids: np.ndarray) -> tuple[tuple[str, float], ...]:
    """The likeliest tokens behind a question, int32 [1, Q], and their shares, as decoding sees."""
    config: Any = opened.model.config
    logits = opened.model.read_memory(opened.params, memory, ids)
    last = np.array(logits[0, int((ids[0] != config.pad_id).sum())], np.float64)
    last[opened.never] = -np.inf
    if opened.end_id != config.pad_id:
        last[config.pad_id] = -np.inf
    shares = np.exp(last - last.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:NUM_LIKELY]
    return tuple((token_name(opened.tokenizer, int(i)), float(shares[i])) for i in best)
