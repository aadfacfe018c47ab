"""What a memory holds of its context: the context read back from memory alone."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradmem_jax.array_checks import check_ids, on_device
from gradmem_jax.checks import require, require_instance
from gradmem_jax.memory.generate import generate
from gradmem_jax.memory.interface import MemoryModel, MemoryT
from gradmem_jax.trees import Params


class Reconstruction(NamedTuple):
    """A context read back from memory.

    Attributes:
        ids: int32 [B, S], greedy decoding from nothing but the memory.
        accuracy: [B], share of context tokens that `ids` has in their places.
        token_accuracy: [B], share of context tokens that are the most likely one, given the memory
            and the true tokens before them.

    Examples:
        >>> shown = gradmem_jax.reconstruct(model, params, memory, context_ids)
        >>> shown.ids.shape, shown.accuracy.shape, shown.token_accuracy.shape
        ((2, 5), (2,), (2,))
    """

    ids: jax.Array
    accuracy: np.ndarray
    token_accuracy: np.ndarray


def reconstruct(
    model: MemoryModel[MemoryT],
    params: Params,
    memory: MemoryT,
    context_ids: ArrayLike,
    *,
    never: Sequence[int] | np.ndarray = (),
) -> Reconstruction:
    """Reads contexts back from memory through the head of WRITE, or of READ if there is no other.

    Args:
        model: the model.
        params: its parameters.
        memory: what `write_memory` returned for B contexts.
        context_ids: int [B, S], the contexts, padded on the right.
        never: ids that are never decoded, see `generate`.

    Returns:
        The contexts as memory has them. Greedy decoding needs one position more than the WRITE; a
        context that fills the model's positions comes back without its last token.

    Raises:
        ValueError: wrong shapes, ids outside the vocabulary, or no room to decode.

    Examples:
        >>> shown = gradmem_jax.reconstruct(model, params, memory, context_ids)
        >>> shown.ids.shape  # [B, S]
        (2, 5)
    """
    require_instance("model", model, MemoryModel)
    c = model.config
    model.check_params(params)
    context_ids = check_ids("context_ids", context_ids, ("B", "S"), c.lm.vocab_size, c.pad_id)
    model.check_memory(params, memory, context_ids.shape[0])
    capacity = c.lm.max_positions - model.num_memory_positions(memory) - 1
    require(
        capacity > 0, "the memory fills all positions of the model; none are left to decode in."
    )
    view, seen = model.write_view(params)
    context_ids = view.check_read(seen, memory, context_ids)
    logits = view.read_memory(seen, memory, context_ids)
    length = context_ids.shape[1]
    nothing = on_device(np.full((context_ids.shape[0], 1), c.pad_id, np.int32))
    ids = generate(view, seen, memory, nothing, min(length, capacity), never=never)
    ids, *counts = _compared(ids, logits, context_ids, c.pad_id)
    right, right_tokens, num_tokens = jax.device_get(counts)
    return Reconstruction(ids, right / num_tokens, right_tokens / num_tokens)


@functools.partial(jax.jit, static_argnums=3)
def _compared(
    ids: jax.Array, logits: jax.Array, context_ids: jax.Array, pad_id: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Ids without what stands in the place of padding, and counts [B].

    They are the tokens that `ids` has right, those that `logits` has right, and all, 1 at least.
    """
    real = context_ids != pad_id
    missing = context_ids.shape[1] - ids.shape[1]
    ids = jnp.pad(ids, ((0, 0), (0, missing)), constant_values=pad_id)
    ids = jnp.where(real, ids, pad_id)

    def count(right: jax.Array) -> jax.Array:
        return (right & real).sum(axis=1)

    likely = logits[:, :-1].argmax(-1)
    num_tokens = jnp.maximum(real.sum(axis=1), 1)
    return ids, count(ids == context_ids), count(likely == context_ids), num_tokens
