"""Full context: the key-value cache of the whole context is the memory, an upper bound."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import register_namedtuple_serialization

from gradmem_jax.array_checks import check_length, check_memory
from gradmem_jax.checks import is_traced, require
from gradmem_jax.lm.attention import KVCache, extend_capacity, make_cache
from gradmem_jax.lm.transformer import TransformerConfig
from gradmem_jax.losses import IGNORE, losses_of_hidden, mean_per_sample
from gradmem_jax.memory.inner_loop import WriteInfo, WriteSettings, steps_to_take
from gradmem_jax.memory.interface import MemoryConfig, MemoryModel
from gradmem_jax.memory.programs import shared
from gradmem_jax.precision import at_model_precision
from gradmem_jax.trees import Params


class ContextMemory(NamedTuple):
    """What a Transformer keeps of a context.

    Attributes:
        keys: [B, L, S, Hkv, Dh].
        values: [B, L, S, Hkv, Dh].
        last_hidden: [B, d], final hidden state of the last context token.
        length: int32 [B], tokens of each context.

    Examples:
        >>> model = gradmem_jax.FullContext(gradmem_jax.FullContextConfig(lm=small))
        >>> params = jax.eval_shape(model.init, jax.random.key(0))  # shapes only
        >>> memory, _ = jax.eval_shape(model.write_memory, params, context_ids)
        >>> memory.keys.shape, memory.length.shape  # [B, L, S, Hkv, Dh], [B]
        ((2, 1, 5, 2, 4), (2,))
    """

    keys: jax.Array
    values: jax.Array
    last_hidden: jax.Array
    length: jax.Array


register_namedtuple_serialization(ContextMemory, serialized_name="gradmem_jax.ContextMemory")


@dataclasses.dataclass(frozen=True)
class FullContextConfig(MemoryConfig):
    """A Transformer that sees the whole context.

    There is one WRITE step, the forward pass over the context. With K = 0 the memory is empty. The
    WRITE loss that `inner_loss_weight` adds to the outer loss is the language model's own, of each
    token of the context from those before it.

    Examples:
        >>> gradmem_jax.FullContextConfig(lm=small).num_write_steps
        1
    """

    has_write_loss: ClassVar[bool] = True

    lm: TransformerConfig


@dataclasses.dataclass(frozen=True)
class FullContext(MemoryModel[ContextMemory]):
    """Pure functions of (params, arrays) of a Transformer that keeps its context.

    Attributes:
        config: the model.

    Examples:
        >>> model = gradmem_jax.FullContext(gradmem_jax.FullContextConfig(lm=small))
        >>> params = jax.jit(model.init)(jax.random.key(0))
        >>> memory, _ = model.write_memory(params, context_ids)
        >>> memory.values.shape  # [B, L, S, Hkv, Dh]
        (2, 1, 5, 2, 4)
    """

    one_pass: ClassVar[bool] = True

    config: FullContextConfig

    @shared
    def init(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws the parameters of the language model, {"lm": ...}; see `MemoryModel.init`."""
        return {"lm": self.init_lm(key, lm_params)}

    def check_write(
        self, params: Params, memory: ContextMemory | None, context_ids: jax.typing.ArrayLike
    ) -> jax.Array:
        """Returns context_ids as int [B, S]; they must fit behind those of the memory."""
        context_ids = super().check_write(params, memory, context_ids)
        positions = 0 if memory is None else self.num_memory_positions(memory)
        limit = self.config.lm.max_positions
        check_length("context_ids", context_ids.shape[1], positions, limit)
        return context_ids

    def run_steps(
        self,
        params: Params,
        context_ids: jax.Array,
        memory: ContextMemory | None,
        settings: WriteSettings,
        max_steps: int,
    ) -> tuple[ContextMemory, WriteInfo]:
        """Runs the model over contexts behind those of the memory; see `MemoryModel.run_steps`.

        Returns:
            The memory, and a `WriteInfo` without gradient norms. Its losses are [1, B], or [0, B]
            when `inner_loss_weight` is 0 and nobody needs them. 0 steps keep nothing of these
            contexts, 1 or more all of them.
        """
        batch_size, length = context_ids.shape
        memory = self._empty(batch_size) if memory is None else memory
        kept = jnp.minimum(steps_to_take(settings, max_steps, batch_size), 1)
        lengths = jnp.where(kept > 0, self.query_lengths(context_ids), 0)
        hidden, cache = self.apply_lm(
            params,
            self.embed(params, context_ids),
            cache=self._cache(memory, length),
        )
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        last_hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
        written = ContextMemory(
            jnp.transpose(cache.keys, (1, 0, 3, 2, 4)),
            jnp.transpose(cache.values, (1, 0, 3, 2, 4)),
            jnp.where((lengths > 0)[:, None], last_hidden, memory.last_hidden),
            memory.length + lengths,
        )
        losses = jnp.zeros((0, batch_size))
        if self.config.inner_loss_weight:
            before = jnp.concatenate([memory.last_hidden[:, None], hidden[:, :-1]], axis=1)
            each = self._token_losses(params, before, context_ids, memory.length)
            losses = mean_per_sample(*each)[None]
            losses = losses * kept[None].astype(losses.dtype)
        return written, WriteInfo(losses, (), kept)

    def outer_write_loss(self, info: WriteInfo) -> jax.Array:
        """The WRITE loss [B] that the outer loss may add."""
        return info.losses.sum(axis=0)

    @at_model_precision
    def write_token_losses(
        self, params: Params, memory: ContextMemory, context_ids: jax.Array
    ) -> jax.Array:
        """The language model's own loss of every context token, whatever the memory.

        Reading a context back from itself would need twice its positions, and be another figure
        than the WRITE loss. A segment stands by itself here.

        Args:
            params: parameters of `init`.
            memory: checked, and not used.
            context_ids: int [B, S].

        Returns:
            [B, S] in nats, 0 on padding and for the first token, which nothing predicts.
        """
        context_ids = self.check_losses(params, memory, context_ids, positions=0)
        hidden, _ = self.apply_lm(params, self.embed(params, context_ids))
        before = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
        offset = jnp.zeros(context_ids.shape[0], jnp.int32)
        return self._token_losses(params, before, context_ids, offset)[0]

    def scored_tokens(self, context_ids: jax.Array) -> jax.Array:
        """All but padding and the first token; see `MemoryModel.scored_tokens`."""
        return self._scored_behind(jnp.zeros(context_ids.shape[:-1], jnp.int32), context_ids)

    def _scored_behind(self, offset: jax.Array, context_ids: jax.Array) -> jax.Array:
        """Which tokens [..., S] have a loss, behind `offset` [...] others of their context."""
        places = jax.lax.broadcasted_iota(jnp.int32, context_ids.shape, context_ids.ndim - 1)
        return super().scored_tokens(context_ids) & (offset[..., None] + places > 0)

    def _token_losses(
        self, params: Params, before: jax.Array, context_ids: jax.Array, offset: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Losses [B, S] of tokens [B, S] from hidden states [B, S, d] before them, and labels.

        The first token of all, where `offset` [B] is 0, is predicted from nothing and left out.
        """
        labels = jnp.where(self._scored_behind(offset, context_ids), context_ids, IGNORE)
        project = functools.partial(self.apply_lm, params, method="unembed")
        return losses_of_hidden(project, before, labels), labels

    def check_memory(self, params: Params, memory: ContextMemory, batch_size: int) -> None:
        """Raises ValueError unless `memory` is one of this model, for `batch_size` samples."""
        is_one = isinstance(memory, ContextMemory) and jnp.ndim(memory.keys) == 5
        length = jnp.shape(memory.keys)[2] if is_one else 1
        check_memory(memory, jax.eval_shape(lambda: self._empty(batch_size, length)))
        if not is_traced(memory.length):
            lengths = np.asarray(jax.device_get(memory.length))
            require(
                bool((lengths >= 0).all() and (lengths <= length).all()),
                f"memory.length={lengths.tolist()} must be in [0, {length}], the tokens it holds.",
            )

    def without_padding(self, memory: ContextMemory) -> ContextMemory:
        """The same memory, with places for the longest of its contexts and no more."""
        longest = int(np.max(jax.device_get(memory.length)))
        return memory._replace(
            keys=memory.keys[:, :, :longest], values=memory.values[:, :, :longest]
        )

    def num_memory_positions(self, memory: ContextMemory) -> int:
        """Positions before the first query token, padding included."""
        return memory.keys.shape[2]

    def read_logits(
        self,
        params: Params,
        memory: ContextMemory,
        query_ids: jax.Array,
        max_new_tokens: int | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs queries behind their contexts; see `MemoryModel.read_logits`."""
        cache = self._cache(memory, query_ids.shape[1])
        hidden, cache = self.apply_lm(params, self.embed(params, query_ids), cache=cache)
        hidden = jnp.concatenate([memory.last_hidden[:, None], hidden], axis=1)
        logits = self.apply_lm(params, hidden, method="unembed")
        cache = cache._replace(length=memory.length + self.query_lengths(query_ids))
        return logits, extend_capacity(cache, max_new_tokens or 0)

    def _empty(self, batch_size: int, length: int = 0) -> ContextMemory:
        """The memory of no context, with a capacity of `length` tokens."""
        c = self.config.lm
        empty = jnp.zeros((batch_size, c.num_layers, length, c.kv_heads, c.head_size), c.dtype)
        hidden = jnp.zeros((batch_size, c.width), c.dtype)
        return ContextMemory(empty, empty, hidden, jnp.zeros(batch_size, jnp.int32))

    def _cache(self, memory: ContextMemory, extra_capacity: int) -> KVCache:
        """The memory as a cache with a capacity for more tokens."""
        return make_cache(memory.keys, memory.values, memory.length, extra_capacity)
