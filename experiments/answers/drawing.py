"""Texts drawn from a pretrained language model."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.program.console import log
from gradmem_jax import FullContext, FullContextConfig, Pretrained, generate
from gradmem_jax.checks import require
from gradmem_jax.data.task import ids_without_token, text_of
from gradmem_jax.lm.transformer import TransformerConfig


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
    never = ids_without_token(tokenizer, lm.vocab_size)
    texts: list[str] = []
    while len(texts) < num_texts:
        key = jax.random.fold_in(jax.random.key(seed), len(texts))
        rows = generate(
            model,
            params,
            memory,
            query,
            max_tokens,
            never=never,
            temperature=temperature,
            key=key,
        )
        for ids in np.asarray(rows):
            ends = np.flatnonzero(ids == start_id)
            texts.append(text_of(tokenizer, ids[: ends[0]] if len(ends) else ids).strip())
        log.info("%d of %d texts", min(len(texts), num_texts), num_texts)
    return texts[:num_texts]
