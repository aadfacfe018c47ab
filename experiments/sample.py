"""Draws texts from a pretrained language model: text that it can model, to be compressed.

python -m experiments.sample --model=stories260K.bin --out=stories/drawn.txt --num_texts=2000
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.program import console, files, startup
from experiments.program.console import log
from gradmem_jax import FullContext, FullContextConfig, Pretrained, generate, load_pretrained
from gradmem_jax.checks import require
from gradmem_jax.lm.transformer import TransformerConfig

_MODEL = flags.DEFINE_string(
    "model", None, "Files of a pretrained language model (required).", required=True
)
_OUT = flags.DEFINE_string("out", None, "Text file to write (required).", required=True)
_NUM_TEXTS = flags.DEFINE_integer("num_texts", 1000, "How many texts.", lower_bound=1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "Longest text, in tokens.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 is greedy, 1 as the model says.")
_START = flags.DEFINE_string("start", "<s>", "Token that every text begins after.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "Texts drawn at once.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed draws the same texts.")


def draw_texts(
    pretrained: Pretrained,
    start: str,
    *,
    num_texts: int,
    max_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 100,
    seed: int = 0,
) -> list[str]:
    """Draws texts that begin after the token `start` and end before its next occurrence.

    Raises:
        ValueError: the model has no tokenizer, or the tokenizer no such token.
    """
    lm, tokenizer = pretrained.config, pretrained.tokenizer
    if not isinstance(lm, TransformerConfig) or tokenizer is None:
        raise ValueError("texts are drawn from a Transformer with a tokenizer beside it.")
    start_id = tokenizer.backend.token_to_id(start)
    if start_id is None:
        raise ValueError(
            f"--start={start!r} is no token of this model; name the one its texts begin with."
        )
    padding = (start_id + 1) % lm.vocab_size  # of nothing: all queries have one length
    model = FullContext(FullContextConfig(lm=lm, pad_id=padding))
    params = model.init(jax.random.key(0), pretrained.params)
    query = jnp.full((batch_size, 1), start_id, jnp.int32)
    memory, _ = model.write_memory(params, query, num_steps=0)
    limit = lm.max_positions - model.num_memory_positions(memory) - 1
    require(
        max_tokens <= limit,
        f"--max_tokens={max_tokens} is more than this model's {lm.max_positions} positions take; "
        f"give at most {limit}.",
    )
    texts: list[str] = []
    while len(texts) < num_texts:
        key = jax.random.fold_in(jax.random.key(seed), len(texts))
        rows = generate(
            *(model, params, memory, query, max_tokens), temperature=temperature, key=key
        )
        for ids in np.asarray(rows):
            ends = np.flatnonzero(ids == start_id)
            texts.append(tokenizer.decode(ids[: ends[0]] if len(ends) else ids).strip())
        log.info("%d of %d texts", min(len(texts), num_texts), num_texts)
    return texts[:num_texts]


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    out = files.output_file("out", _OUT.value)
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
    out.write_text(text, encoding="utf-8")
    log.info("wrote %d texts, %d characters, to %s", len(texts), len(text), out)


if __name__ == "__main__":
    startup.run(main)
