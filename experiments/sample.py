r"""Draws texts from a pretrained language model: text that it can model, to be compressed.

Example:
  python -m experiments.sample --model=stories260K.bin \
      --out=stories/drawn.txt --num_texts=2000
"""

from collections.abc import Sequence

from absl import flags

from experiments.answers.drawing import draw_texts
from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.run.workdir import require_no_run
from gradmem_jax import load_pretrained
from gradmem_jax.storage.writing import write_text

_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Files or name (org/name@revision) of a pretrained language model (required).",
    required=True,
)
_OUT = flags.DEFINE_string("out", None, "Text file to write (required).", required=True)
_NUM_TEXTS = flags.DEFINE_integer("num_texts", 1000, "How many texts.", lower_bound=1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "Longest text, in tokens.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 is greedy, 1 as the model says.")
_START = flags.DEFINE_string("start", "<s>", "Token that every text begins after.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "Texts drawn at once.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed draws the same texts.")


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    out = files.output_file("out", _OUT.value)
    require_no_run("model", _MODEL.value)
    texts = draw_texts(
        load_pretrained(_MODEL.value),
        _START.value,
        num_texts=_NUM_TEXTS.value,
        max_tokens=_MAX_TOKENS.value,
        temperature=_TEMPERATURE.value,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
    )
    text = "\n\n".join(texts) + "\n"
    write_text(out, text)
    log.info("wrote %d texts, %d characters, to %s", len(texts), len(text), out)


if __name__ == "__main__":
    startup.run(main)
