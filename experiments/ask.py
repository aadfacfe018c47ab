"""Answers questions from a memory file of experiments.write; the contexts are not needed.

Every question is put to every memory of the file, or to those that --context names. Examples:

  python -m experiments.ask --memory=notes.safetensors 'Where is Mary?' 'Where is John?'
  python -m experiments.ask --memory=notes.safetensors --interactive
"""

import fnmatch
import json
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import app, flags

from experiments import reporting
from experiments.contexts import bucket
from experiments.open_model import OpenModel, open_model
from gradmem_jax.config import require
from gradmem_jax.fingerprint import take_fingerprint
from gradmem_jax.generate import generate
from gradmem_jax.memory.interface import Memory
from gradmem_jax.memory_file import Header, load_memory, read_header

_MEMORY = flags.DEFINE_string("memory", None, "A memory file.", required=True)
_MODEL = flags.DEFINE_string("model", None, "Where the model is now, if it was moved.")
_CONTEXT = flags.DEFINE_string("context", "*", "Names of the contexts to ask, a pattern.")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 32, "Longest answer, in tokens.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Memories asked at once.", lower_bound=1)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "Ask in a loop; an empty line or Ctrl-D ends it."
)
_JSON = flags.DEFINE_bool("json", False, "Print a JSON line for each answer.")


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
        require(bool(question.strip()), f"the question {question!r} is empty; ask something.")
        ids = np.asarray(opened.tokenizer.encode(opened.prompt(question)), np.int32)
        require(len(ids) > 0, f"the question {question!r} has no tokens; ask something else.")
        require(
            config.pad_id not in ids,
            f"the question {question!r} holds the padding token {config.pad_id}, which stands for "
            "no text; leave it out.",
        )
        require(
            len(ids) <= limit,
            f"the question {question!r} has {len(ids)} tokens; the model has room for {limit} "
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
    """Answers questions from memory alone.

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
    ids = np.broadcast_to(ids, (len(jax.tree.leaves(memory)[0]), *ids.shape))
    new = generate(opened.model, opened.params, memory, ids, max_new_tokens, stop_id=opened.end_id)
    return [[_decode(opened, row) for row in rows] for rows in np.asarray(new)]


def _decode(opened: OpenModel, ids: np.ndarray) -> str:
    ends = np.flatnonzero(ids == opened.end_id)
    return opened.tokenizer.decode(ids[: ends[0]] if len(ends) else ids).strip()


def open_memories(
    path: str, opened: OpenModel, header: Header, pattern: str, batch_size: int
) -> Iterator[tuple[list[str], Memory]]:
    """Yields names and memory of the contexts whose names fit a pattern, some at once.

    Raises:
        ValueError: there are none, or the file is damaged or of another model.
    """
    names = [context.name for context in header.contexts]
    chosen = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
    require(bool(chosen), f"{path} has no context {pattern!r}; it has {names[:20]}.")
    fingerprint = take_fingerprint(opened.model, opened.params)
    for start in range(0, len(chosen), batch_size):
        indices = np.array(chosen[start : start + batch_size])
        span = slice(int(indices[0]), int(indices[-1]) + 1)
        memory = load_memory(path, opened.model, opened.params, span, fingerprint=fingerprint)
        rows = indices - span.start
        yield [names[i] for i in indices], jax.tree.map(lambda x, rows=rows: x[rows], memory)


def show(names: Sequence[str], questions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
    """Prints the answers of some contexts; a context's name, if there are several, comes first."""
    for name, row in zip(names, answers, strict=True):
        for question, text in zip(questions, row, strict=True):
            if _JSON.value:
                fields = {"context": name, "question": question, "answer": text}
                print(json.dumps(fields, ensure_ascii=False), flush=True)
            else:
                where = f"{name}: " if len(names) > 1 else ""
                print(f"{where}{question} -> {text}", flush=True)


def ask_in_a_loop(opened: OpenModel, memories: Sequence[tuple[list[str], Memory]]) -> None:
    """Reads questions from the keyboard and answers them, until an empty line."""
    while True:
        try:
            question = input("" if _JSON.value else "? ")
        except EOFError:
            break
        if not question.strip():
            break
        for names, memory in memories:
            try:
                show(names, [question], answer(opened, memory, [question], _MAX_NEW_TOKENS.value))
            except ValueError as error:
                print(error, file=sys.stderr, flush=True)
                break


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    reporting.set_up_logging()
    questions = arguments[1:]
    require(
        bool(questions) != _INTERACTIVE.value,
        "give questions, or --interactive to be asked for them; one of the two.",
    )
    header = read_header(_MEMORY.value)
    path = _MODEL.value or str(header.notes.get("model", ""))
    require(bool(path), f"{_MEMORY.value} does not say where its model is; name it with --model.")
    opened = open_model(path, header.notes.get("options", {}))
    memories = open_memories(_MEMORY.value, opened, header, _CONTEXT.value, _BATCH_SIZE.value)
    if _INTERACTIVE.value:
        ask_in_a_loop(opened, list(memories))
        return
    for names, memory in memories:
        show(names, questions, answer(opened, memory, questions, _MAX_NEW_TOKENS.value))


if __name__ == "__main__":
    app.run(main)
