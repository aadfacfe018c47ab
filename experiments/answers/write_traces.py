"""WRITEs of an untrained model step by step, by several inner optimizers."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.answers.open_model import OpenModel, scaled_adam
from experiments.program import formatting
from experiments.program.console import log
from gradmem_jax.checks import require, require_number
from gradmem_jax.data.task import text_of
from gradmem_jax.foreign_text import one_line
from gradmem_jax.losses import token_losses
from gradmem_jax.memory.interface import Memory
from gradmem_jax.memory.reconstruction import reconstruct
from gradmem_jax.trees import Params


def trace_writes(
    opened: OpenModel,
    ids: np.ndarray,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    num_steps: int,
    every: int,
) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """Writes a context with each inner optimizer in turn, reading it back every few steps.

    Args:
        opened: the model.
        ids: int [1, S], the context.
        optimizers: by name.
        num_steps: K.
        every: steps between readings.

    Yields:
        The name and, for step 0, every, ..., K: step, write_loss, token_accuracy (after the true
        tokens) and seconds, those of the steps so far; in the last row also accuracy, of the text
        decoded from memory alone.
    """
    model: Any = opened.model
    params, context_ids = opened.params, jnp.asarray(ids)

    @jax.jit
    def read(params: Params, memory: Memory) -> dict[str, jax.Array]:
        view, seen = model.write_view(params)
        logits = view.read_memory(seen, memory, context_ids)[:, :-1]
        return {
            "write_loss": token_losses(logits, context_ids).mean(),
            "token_accuracy": (logits.argmax(-1) == context_ids).mean(),
        }

    def loss(memory: Memory, params: Params) -> jax.Array:
        return model.write_token_losses(params, memory, context_ids).mean()

    start = model.initial_memory(params, len(ids))
    gradient = jax.jit(jax.grad(loss)).lower(start, params).compile()
    for name, optimizer in optimizers.items():
        update = jax.jit(optimizer.update)
        memory, state = start, optimizer.init(start)
        rows: list[dict[str, float]] = []
        seconds = 0.0
        for done in range(num_steps + 1):
            if done % every == 0 or done == num_steps:
                means = {key: float(value) for key, value in read(params, memory).items()}
                rows.append({"step": done, **means, "seconds": seconds})
                log.info("%s, %s", name, formatting.describe(rows[-1]))
            if done < num_steps:
                started = time.monotonic()
                updates, state = update(gradient(memory, params), state, memory)
                memory = jax.block_until_ready(optax.apply_updates(memory, updates))
                seconds += time.monotonic() - started
        back = reconstruct(model, params, memory, context_ids, never=opened.never)
        rows[-1]["accuracy"] = float(back.accuracy[0])
        shown = one_line(text_of(opened.tokenizer, back.ids[0]))
        log.info("%s, from memory alone: %s", name, shown)
        yield name, rows


def make_optimizer(text: str, embedding: np.ndarray) -> optax.GradientTransformation:
    """Makes an inner optimizer of a name and a rate such as `adam:0.3`."""
    match = re.fullmatch(r"(sgd|adam):(\d+(?:\.\d*)?(?:e-?\d+)?)", text)
    require(match is not None, f"--optimizers: {text!r} must look like 'sgd:1' or 'adam:0.3'.")
    assert match is not None
    rate = require_number("the rate in --optimizers", float(match[2]), above=0)
    return optax.sgd(rate) if match[1] == "sgd" else scaled_adam(rate, embedding)
