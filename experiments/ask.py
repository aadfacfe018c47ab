r"""Answers questions from a memory file of experiments.write; the contexts are not needed.

Every question is put to every memory of the file, or to those that --context names. Examples:

  python -m experiments.ask --memory=notes.safetensors 'Where is Mary?' \
      'Where is John?'
  python -m experiments.ask --memory=notes.safetensors --interactive

The model that wrote the file is opened by itself only if it lies in the file's folder: anybody may
have written the file. Otherwise say with --model where it is.
"""

import sys
from collections.abc import Iterable, Sequence

from absl import flags

from experiments.answers.answering import (
    answer,
    ask_in_a_loop,
    choose_contexts,
    open_memories,
    show,
)
from experiments.answers.reopen_model import reopen_model
from experiments.program import console, startup
from gradmem_jax.checks import require
from gradmem_jax.memory.interface import Memory
from gradmem_jax.storage.memory_file import read_header

_MEMORY = flags.DEFINE_string("memory", None, "A memory file (required).", required=True)
_MODEL = flags.DEFINE_string("model", None, "Where the model is, if not in the memory's folder.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "The same of a tokenizer that write was given.")
_CONTEXT = flags.DEFINE_string("context", "*", "Names of the contexts to ask, a pattern.")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 32, "Longest answer, in tokens.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Memories asked at once.", lower_bound=1)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive", False, "Ask in a loop; an empty line, Ctrl-D or Ctrl-C ends it."
)
_JSON = flags.DEFINE_bool("json", False, "Print a JSON line for each answer.")


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    require(
        bool(arguments[1:]) != _INTERACTIVE.value,
        "give questions, or --interactive to be asked for them; one of the two.",
    )
    header = read_header(_MEMORY.value)
    chosen = choose_contexts(_MEMORY.value, header, _CONTEXT.value)
    opened = reopen_model(
        _MEMORY.value, header.notes, _MODEL.value, _TOKENIZER.value, typed=sys.argv[1:]
    )
    console.note("compiling")
    memories = open_memories(_MEMORY.value, opened, header, chosen, _BATCH_SIZE.value)

    def ask(questions: Sequence[str], memories: Iterable[tuple[list[str], Memory]]) -> None:
        for names, memory in memories:
            answers = answer(opened, memory, questions, _MAX_NEW_TOKENS.value)
            show(names, questions, answers, with_names=len(chosen) > 1, as_json=_JSON.value)

    if _INTERACTIVE.value:
        kept = list(memories)
        ask_in_a_loop(lambda question: ask([question], kept), "" if _JSON.value else "? ")
    else:
        ask(arguments[1:], memories)


if __name__ == "__main__":
    startup.run(main, takes_words=True)
