r"""Writes documents into memory, once; experiments.ask answers from the memory alone.

The model is a run of experiments.train, or a pretrained language model as it is. Examples:

  python -m experiments.write --model=runs/kv_quick --context=notes.txt \
      --out=notes.safetensors
  python -m experiments.write --model=models/smollm2 --context='docs/*.txt' \
      --segment_tokens=256 --num_write_steps=200 --out=docs.safetensors --show
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments.answers.contexts import read_contexts
from experiments.answers.open_model import open_model, whole_place
from experiments.answers.reopen_model import ask_command, not_beside
from experiments.answers.writing import (
    describe_sizes,
    read_back,
    report,
    report_read_back,
    save_written,
    write_contexts,
)
from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.program.files import check_apart, matching_files, output_figure
from experiments.results import figures
from gradmem_jax.foreign_text import one_line

_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Workdir of a run, files of a pretrained language model, or name of an export or such a "
    "model on a hub, org/name@revision "
    "(required).",
    required=True,
)
_CONTEXT = flags.DEFINE_multi_string(
    "context",
    None,
    "File, pattern, or JSON lines of contexts; may be repeated (required).",
    required=True,
)
_OUT = flags.DEFINE_string("out", None, "The memory file to write (required).", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Of a run: best (default), latest, a step.")
_NUM_WRITE_STEPS = flags.DEFINE_integer("num_write_steps", None, "WRITE steps K.", lower_bound=0)
_NUM_MEMORY_TOKENS = flags.DEFINE_integer(
    "num_memory_tokens", None, "Memory tokens m of a pretrained model; default 8.", lower_bound=1
)
_WRITE_OPTIMIZER = flags.DEFINE_enum(
    "write_optimizer", None, ["adam", "sgd"], "Of a pretrained model; default adam."
)
_WRITE_LEARNING_RATE = flags.DEFINE_float(
    "write_learning_rate", None, "Of a pretrained model; Adam's in units of the embeddings' size."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Of a pretrained model, if it is not beside it: a file or directory."
)
_PAD_TOKEN = flags.DEFINE_string(
    "pad_token", None, "Of a pretrained model: the token that fills contexts, if not a usual one."
)
_ADD_BEGIN_TOKEN = flags.DEFINE_bool(
    "add_begin_token",
    None,
    "Of a pretrained model: whether texts begin with a token as its tokenizer says; default yes.",
)
_SEGMENT_TOKENS = flags.DEFINE_integer(
    "segment_tokens", None, "Write longer contexts segment after segment.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Contexts written at once.", lower_bound=1)
_SHOW = flags.DEFINE_bool("show", False, "Read the contexts back from memory.")
_FIGURE = flags.DEFINE_string("figure", None, "PNG, PDF or SVG of WRITE losses and sizes.")


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    patterns = [*_CONTEXT.value, *arguments[1:]]  # --context *.txt, not quoted
    check_apart({"out": _OUT.value, "figure": _FIGURE.value}, matching_files(patterns))
    files.output_file("out", _OUT.value)
    if _FIGURE.value:
        output_figure("figure", _FIGURE.value)
    contexts = read_contexts(patterns)
    options = {
        "checkpoint_name": _CHECKPOINT.value,
        "num_memory_tokens": _NUM_MEMORY_TOKENS.value,
        "write_optimizer": _WRITE_OPTIMIZER.value,
        "write_learning_rate": _WRITE_LEARNING_RATE.value,
        "pad_token": _PAD_TOKEN.value,
        "add_begin_token": _ADD_BEGIN_TOKEN.value,
        "tokenizer_path": _TOKENIZER.value and whole_place(_TOKENIZER.value),
    }
    given = {name: value for name, value in options.items() if value is not None}
    opened = open_model(_MODEL.value, given)
    log.info("%d contexts: compiling, then writing", len(contexts))
    written = write_contexts(
        opened,
        contexts,
        num_write_steps=_NUM_WRITE_STEPS.value,
        segment_tokens=_SEGMENT_TOKENS.value,
        batch_size=_BATCH_SIZE.value,
    )
    save_written(_OUT.value, opened, written)
    more = not_beside(_OUT.value, opened.notes)
    log.info("%s\nwrote %s", report(opened, written), one_line(_OUT.value))
    log.info("ask it with %s QUESTION", ask_command(_OUT.value, more))
    if _SHOW.value:
        found = read_back(opened, written, _BATCH_SIZE.value)
        log.info("read back\n%s", report_read_back(written, found))
    if _FIGURE.value:
        sizes = [describe_sizes(opened, written.memory, c) for c in written.contexts]
        figures.written_contexts(pathlib.Path(_FIGURE.value), written.contexts, sizes)
        log.info("drew %s", _FIGURE.value)


if __name__ == "__main__":
    startup.run(main, takes_words=True)
