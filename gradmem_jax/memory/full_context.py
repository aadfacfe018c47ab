"""Full context: the key-value cache of the whole context is the memory, an upper bound."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradmem_jax.config import MemoryConfig, require
from gradmem_jax.lm.attention import KVCache
from gradmem_jax.losses import IGNORE, token_losses
from gradmem_jax.memory.inner_loop import WriteInfo
from gradmem_jax.memory.interface import Memory, MemoryModel, Params
from gradmem_jax.validation import check_memory, resolve_steps


class ContextMemory(NamedTuple):
    """What a Transformer keeps of a context.

    Attributes:
        keys: [B, L, S, Hkv, Dh].
        values: [B, L, S, Hkv, Dh].
        last_hidden: [B, d], final hidden state of the last context token.
        length: int32 [B], tokens of each context.
    """

    keys: jax.Array
    values: jax.Array
    last_hidden: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class FullContextConfig(MemoryConfig):
    """A Transformer that sees the whole context.

    There is one WRITE step, the forward pass over the context. With K = 0 the memory is empty.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.inner_loss_weight,
            f"inner_loss_weight={self.inner_loss_weight} must be 0: a full context has no WRITE "
            "loss.",
        )


@dataclasses.dataclass(frozen=True)
class FullContext(MemoryModel):
    """Pure functions of (params, arrays) of a Transformer that keeps its context.

    Attributes:
        config: the model.
    """

    config: FullContextConfig

    def init(self, key: jax.Array) -> Params:
        """Draws the parameters of the language model, {"lm": ...}."""
        return {"lm": self.init_lm(key)}

    def write_memory(
        self,
        params: Params,
        context_ids: jax.Array,
        *,
        num_steps: int | jax.Array | None = None,
        max_steps: int | None = None,
    ) -> tuple[ContextMemory, WriteInfo]:
        """Runs the model over contexts and keeps its key-value cache.

        Args:
            params: parameters of `init`.
            context_ids: int [B, S], padded on the right with `config.pad_id` to any length.
            num_steps: 0 keeps nothing, 1 or more the whole context.
            max_steps: static upper bound of a traced `num_steps`.

        Returns:
            The memory, and a `WriteInfo` without losses and gradient norms.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, a context longer than the model's
                positions, or a wrong number of steps.
        """
        context_ids = self.check_context(context_ids, 0)
        num_steps = self.config.num_write_steps if num_steps is None else num_steps
        static_steps, traced_steps = resolve_steps(num_steps, max_steps)
        kept = (static_steps if traced_steps is None else traced_steps) > 0
        batch_size, room = context_ids.shape
        lengths = (context_ids != self.config.pad_id).sum(axis=1).astype(jnp.int32)
        hidden, cache = self.apply_lm(
            params, self.embed(params, context_ids), cache=self.lm.empty_cache(batch_size, room)
        )
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        last_hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
        memory = ContextMemory(
            jnp.moveaxis(cache.keys, 0, 1),
            jnp.moveaxis(cache.values, 0, 1),
            jnp.where(kept & (lengths > 0)[:, None], last_hidden, 0),
            jnp.where(kept, lengths, 0),
        )
        taken = jnp.full(batch_size, kept, jnp.int32)
        return memory, WriteInfo(jnp.zeros((0, batch_size)), (), taken)

    def outer_write_loss(self, info: WriteInfo) -> jax.Array:
        """Zero [B]: there is no WRITE loss."""
        return jnp.zeros(info.num_steps.shape)

    def write_token_losses(
        self, params: Params, memory: Memory, context_ids: jax.Array
    ) -> jax.Array:
        """Loss of every context token given the tokens before it, 0 for the first; [B, S]."""
        del memory
        hidden, _ = self.apply_lm(params, self.embed(params, context_ids))
        logits = self.apply_lm(params, hidden[:, :-1], method="unembed")
        labels = jnp.where(context_ids == self.config.pad_id, IGNORE, context_ids)[:, 1:]
        return jnp.pad(token_losses(logits, labels), ((0, 0), (1, 0)))

    def check_memory(self, params: Params, memory: Memory, batch_size: int) -> None:
        """Raises ValueError unless `memory` is one of this model, for `batch_size` samples."""
        room = jnp.shape(memory.keys)[2] if isinstance(memory, ContextMemory) else 1
        ids = jax.ShapeDtypeStruct((batch_size, room), jnp.int32)
        write = lambda params, ids: self.write_memory(params, ids, num_steps=1)[0]
        expected = jax.eval_shape(write, params, ids)
        check_memory(memory, expected)

    def num_memory_positions(self, memory: Memory) -> int:
        """Positions before the first query token, padding included."""
        return memory.keys.shape[2]

    def read_logits(
        self, params: Params, memory: Memory, query_ids: jax.Array, room: int | None = None
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs queries behind their contexts; see `MemoryModel.read_logits`."""
        spare = query_ids.shape[1] + (room or 0)
        grow = lambda x: jnp.pad(
            jnp.moveaxis(x, 1, 0), ((0, 0), (0, 0), (0, spare), (0, 0), (0, 0))
        )
        cache = KVCache(grow(memory.keys), grow(memory.values), memory.length)
        hidden, cache = self.apply_lm(params, self.embed(params, query_ids), cache=cache)
        hidden = jnp.concatenate([memory.last_hidden[:, None], hidden], axis=1)
        logits = self.apply_lm(params, hidden, method="unembed")
        return logits, None if room is None else cache
