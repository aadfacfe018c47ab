"""The state of a recurrent language model after the context is the memory: Mamba, TTT-Linear."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import register_namedtuple_serialization

from gradmem_jax.array_checks import check_memory
from gradmem_jax.memory.inner_loop import WriteInfo, WriteSettings, steps_to_take
from gradmem_jax.memory.interface import MemoryConfig, MemoryModel, swap_batch_and_layers
from gradmem_jax.memory.programs import shared
from gradmem_jax.trees import Params


class StateMemory(NamedTuple):
    """What a recurrent language model keeps of a context.

    Attributes:
        state: states of the layers, leaves [B, L, ...].
        last_hidden: [B, d], final hidden state of the last context token.

    Examples:
        >>> config = gradmem_jax.MambaConfig(vocab_size=10, width=8, num_layers=1)
        >>> model = gradmem_jax.StateSpace(gradmem_jax.StateSpaceConfig(lm=config))
        >>> params = jax.eval_shape(model.init, jax.random.key(0))  # shapes only
        >>> memory, _ = jax.eval_shape(model.write_memory, params, context_ids)
        >>> memory.last_hidden.shape  # [B, d]
        (2, 8)
    """

    state: Any
    last_hidden: jax.Array


register_namedtuple_serialization(StateMemory, serialized_name="gradmem_jax.StateMemory")


@dataclasses.dataclass(frozen=True)
class StateSpaceConfig(MemoryConfig):
    """A recurrent language model whose state is the memory.

    There is one WRITE step, the pass over the context. With K = 0 the memory is the first state.

    Examples:
        >>> config = gradmem_jax.MambaConfig(vocab_size=10, width=8, num_layers=1)
        >>> gradmem_jax.StateSpaceConfig(lm=config).num_write_steps
        1
    """

    lm_keeps: ClassVar[str] = "a state"


@dataclasses.dataclass(frozen=True)
class StateSpace(MemoryModel[StateMemory]):
    """Pure functions of (params, arrays) of a recurrent language model.

    Attributes:
        config: the model.

    Examples:
        >>> config = gradmem_jax.MambaConfig(vocab_size=10, width=8, num_layers=1)
        >>> model = gradmem_jax.StateSpace(gradmem_jax.StateSpaceConfig(lm=config))
        >>> params = jax.jit(model.init)(jax.random.key(0))
        >>> memory, _ = model.write_memory(params, context_ids)
        >>> gradmem_jax.memory_floats(memory)  # of a sample
        312
    """

    one_pass: ClassVar[bool] = True

    config: StateSpaceConfig

    @shared
    def init(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws the parameters of the language model, {"lm": ...}; see `MemoryModel.init`."""
        return {"lm": self.init_lm(key, lm_params)}

    def run_steps(
        self,
        params: Params,
        context_ids: jax.Array,
        memory: StateMemory | None,
        settings: WriteSettings,
        max_steps: int,
    ) -> tuple[StateMemory, WriteInfo]:
        """One pass over the contexts, whose state is kept; see `MemoryModel.run_steps`.

        Returns:
            The memory, and a `WriteInfo` without losses and gradient norms. 0 steps read nothing of
            these contexts, 1 or more all of them.
        """
        kept = jnp.minimum(steps_to_take(settings, max_steps, context_ids.shape[0]), 1)
        written = self._run(params, context_ids, memory, kept > 0)
        return written, WriteInfo(jnp.zeros((0, context_ids.shape[0])), (), kept)

    def check_memory(self, params: Params, memory: StateMemory, batch_size: int) -> None:
        """Raises ValueError unless `memory` is one of this model, for `batch_size` samples."""
        ids = jax.ShapeDtypeStruct((batch_size, 1), jnp.int32)
        check_memory(memory, jax.eval_shape(self._run, params, ids, None))

    def num_memory_positions(self, memory: StateMemory) -> int:
        """No positions: the model has none."""
        del memory
        return 0

    def read_logits(
        self,
        params: Params,
        memory: StateMemory,
        query_ids: jax.Array,
        max_new_tokens: int | None = None,
    ) -> tuple[jax.Array, Any]:
        """Goes on from the state with the queries; see `MemoryModel.read_logits`."""
        del max_new_tokens
        hidden, state = self.apply_lm(
            params,
            self.embed(params, query_ids),
            real=query_ids != self.config.pad_id,
            state=swap_batch_and_layers(memory.state),
        )
        hidden = jnp.concatenate([memory.last_hidden[:, None], hidden], axis=1)
        return self.apply_lm(params, hidden, method="unembed"), state

    def decode_token(self, params: Params, state: Any, ids: jax.Array) -> tuple[jax.Array, Any]:
        """Takes one more token of each sample; see `MemoryModel.decode_token`."""
        hidden, state = self.apply_lm(params, self.embed(params, ids[:, None]), state=state)
        return self.apply_lm(params, hidden[:, 0], method="unembed"), state

    def _run(
        self,
        params: Params,
        context_ids: jax.Array,
        memory: StateMemory | None,
        kept: jax.Array | None = None,
    ) -> StateMemory:
        real = context_ids != self.config.pad_id
        real = real if kept is None else real & kept[:, None]
        hidden, state = self.apply_lm(
            params,
            self.embed(params, context_ids),
            real=real,
            state=None if memory is None else swap_batch_and_layers(memory.state),
        )
        lengths = real.sum(axis=1)
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        before = jnp.zeros_like(hidden[:, 0]) if memory is None else memory.last_hidden
        last_hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
        last_hidden = jnp.where((lengths > 0)[:, None], last_hidden, before)
        return StateMemory(swap_batch_and_layers(state), last_hidden)
