"""What a memory holds of its context: the context read back from memory alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradmem_jax.array_checks import check_ids
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
    """

    ids: jax.Array
    accuracy: np.ndarray
    token_accuracy: np.ndarray


def reconstruct(
    model: MemoryModel[MemoryT], params: Params, memory: MemoryT, context_ids: ArrayLike
) -> Reconstruction:
    """Reads contexts back from memory through the head of WRITE, or of READ if there is no other.

    Args:
        model: the model.
        params: its parameters.
        memory: what `write_memory` returned for B contexts.
        context_ids: int [B, S], the contexts, padded on the right.

    Returns:
        The contexts as memory has them. Greedy decoding needs one position more than the WRITE; a
        context that fills the model's positions comes back without its last token.

    Raises:
        ValueError: wrong shapes, ids outside the vocabulary, or no room to decode.
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
    real = np.asarray(context_ids) != model.config.pad_id

    def shares(right: np.ndarray) -> np.ndarray:
        return (right & real).sum(axis=1) / np.maximum(real.sum(axis=1), 1)

    logits = view.read_memory(seen, memory, context_ids)
    token_accuracy = shares(np.asarray(logits[:, :-1].argmax(-1) == context_ids))
    length = context_ids.shape[1]
    nothing = jnp.full((context_ids.shape[0], 1), model.config.pad_id, jnp.int32)
    ids = generate(view, seen, memory, nothing, min(length, capacity))
    ids = jnp.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=model.config.pad_id)
    ids = jnp.where(real, ids, model.config.pad_id)
    return Reconstruction(ids, shares(np.asarray(ids == context_ids)), token_accuracy)
