r"""How many WRITE steps a pretrained language model needs to give a text back, nothing trained.

Example:
  python -m experiments.reconstruct --model=smollm2.gguf \
      --context=text.txt --out=text.json --figure=text.png \
      --optimizers=sgd:1,sgd:10,adam:0.3 --num_write_steps=200
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments.answers.contexts import encode_context, read_contexts, warn_of_unknown
from experiments.answers.open_model import open_pretrained, token_embeddings
from experiments.answers.write_traces import make_optimizer, trace_writes
from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.program.files import check_apart, matching_files, output_figure
from experiments.results import figures
from experiments.run.workdir import require_no_run
from gradmem_jax.checks import require
from gradmem_jax.foreign_text import one_line

_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Files or name (org/name@revision) of a pretrained language model (required).",
    required=True,
)
_CONTEXT = flags.DEFINE_string("context", None, "A text file (required).", required=True)
_OUT = flags.DEFINE_string("out", None, "JSON file to write (required).", required=True)
_FIGURE = flags.DEFINE_string("figure", None, "PNG, PDF or SVG of WRITE loss and token accuracy.")
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers",
    ["sgd:1", "adam:0.3"],
    "Inner optimizers with their rates; Adam's in units of the embeddings' size.",
)
_NUM_WRITE_STEPS = flags.DEFINE_integer("num_write_steps", 200, "WRITE steps.", lower_bound=1)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "The model's, if it is not beside it: a file or directory."
)
_EVERY = flags.DEFINE_integer("every", 10, "Steps between readings.", lower_bound=1)
_NUM_MEMORY_TOKENS = flags.DEFINE_integer("num_memory_tokens", 8, "Memory tokens m.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    check_apart({"out": _OUT.value, "figure": _FIGURE.value}, matching_files([_CONTEXT.value]))
    out = files.output_file("out", _OUT.value)
    if _FIGURE.value:
        output_figure("figure", _FIGURE.value)
    contexts = read_contexts([_CONTEXT.value])
    require(
        len(contexts) == 1,
        f"--context={_CONTEXT.value} holds {len(contexts)} contexts; name a file of one text.",
    )
    require_no_run("model", _MODEL.value)
    opened = open_pretrained(
        pathlib.Path(_MODEL.value),
        num_memory_tokens=_NUM_MEMORY_TOKENS.value,
        tokenizer_path=_TOKENIZER.value,
        add_begin_token=False,  # each token is one to be brought back
        scan_layers=True,
    )
    config = opened.model.config
    embedding = token_embeddings(config.lm, opened.params["lm"])
    optimizers = {text: make_optimizer(text, embedding) for text in _OPTIMIZERS.value}
    limit = opened.limit - 1
    (context,) = contexts
    ids = encode_context(context, opened.tokenizer, pad_id=config.pad_id, limit=limit)
    warn_of_unknown(context.name, context.text, opened.tokenizer)
    log.info("%s, %d tokens; compiling", one_line(context.name), len(ids))
    curves: dict[str, list[dict[str, float]]] = {}
    steps = {"num_steps": _NUM_WRITE_STEPS.value, "every": _EVERY.value}
    for name, rows in trace_writes(opened, ids[None], optimizers, **steps):
        curves[name] = rows
        files.write_results(out, {"tokens": len(ids), "curves": curves})
        if _FIGURE.value:
            figures.write_curves(pathlib.Path(_FIGURE.value), curves)


if __name__ == "__main__":
    startup.run(main)
