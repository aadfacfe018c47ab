"""Memories in the layers of a Transformer, renewed by reading the context: ARMT and LaCT."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from gradmem_jax.array_checks import check_key, check_memory
from gradmem_jax.checks import require_integer, require_number
from gradmem_jax.lm.armt import AssociativeFields, adopt_transformer
from gradmem_jax.lm.attention import extend_capacity
from gradmem_jax.memory.inner_loop import WriteInfo, WriteSettings, step_if, steps_to_take
from gradmem_jax.memory.interface import Memory, MemoryConfig, MemoryModel, swap_batch_and_layers
from gradmem_jax.memory.programs import shared
from gradmem_jax.parallel.any_mesh import vary_like
from gradmem_jax.trees import Params


@dataclasses.dataclass(frozen=True)
class LayerMemoryConfig(MemoryConfig):
    """A memory in every layer, written by the context's own tokens: LaCT, `lm` is a `LaCTConfig`.

    K passes over the same context can be made, each from the memory that the last one left.

    Attributes:
        memory_init_std: deviation of the normal distribution that learned vectors start from.

    Examples:
        >>> fast = gradmem_jax.LaCTConfig(vocab_size=10, width=8, num_layers=1, num_heads=2)
        >>> gradmem_jax.LayerMemoryConfig(lm=fast, num_write_steps=1).lm.chunk_size
        64
    """

    lm_keeps: ClassVar[str] = "fast weights"

    memory_init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("memory_init_std", self.memory_init_std, above=0)

    @property
    def tokens_behind(self) -> int:
        """Memory tokens behind the context."""
        return 0


@dataclasses.dataclass(frozen=True)
class ARMTConfig(LayerMemoryConfig):
    """ARMT: memory tokens behind the context are written into the layers.

    Attributes:
        num_memory_tokens: m.

    Examples:
        >>> config = gradmem_jax.AssociativeConfig(vocab_size=10, width=8, num_heads=2)
        >>> gradmem_jax.ARMTConfig(lm=config, num_memory_tokens=2).num_memory_tokens
        2
    """

    lm_keeps: ClassVar[str] = "associations"

    lm: AssociativeFields
    num_memory_tokens: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("num_memory_tokens", self.num_memory_tokens, 1)

    @property
    def tokens_behind(self) -> int:
        """Memory tokens behind the context."""
        return self.num_memory_tokens


@dataclasses.dataclass(frozen=True)
class LayerMemory(MemoryModel):
    """Pure functions of (params, arrays) of a Transformer with a memory in every layer.

    WRITE runs `[C]`, for ARMT `[C; memory tokens]`, READ runs `[start; Q]` with a learned start
    vector; only what the layers hold passes from one to the other.

    Attributes:
        config: the model.

    Examples:
        >>> config = gradmem_jax.AssociativeConfig(
        ...     vocab_size=10, width=8, num_layers=1, num_heads=2
        ... )
        >>> model = gradmem_jax.LayerMemory(gradmem_jax.ARMTConfig(lm=config, num_memory_tokens=2))
        >>> params = jax.jit(model.init)(jax.random.key(0))
        >>> memory, _ = model.write_memory(params, context_ids)
        >>> gradmem_jax.memory_floats(memory)  # of a sample
        3456
    """

    config: LayerMemoryConfig

    @shared
    def init(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws all parameters.

        Args:
            key: a JAX random key.
            lm_params: parameters of a pretrained language model, see `MemoryModel.init`. Those of
                a plain Transformer do for ARMT made of it; what its layers have beside is drawn.

        Returns:
            Nested dict: "lm", "read_start" [1, d] and, for ARMT, "memory_tokens" [m, d].
        """
        check_key(key)
        c = self.config
        lm_key, token_key, start_key = jax.random.split(key, 3)

        def draw(key: jax.Array, rows: int) -> jax.Array:
            return c.memory_init_std * jax.random.normal(key, (rows, c.lm.width), c.lm.param_dtype)

        params = {"lm": self.init_lm(lm_key, lm_params), "read_start": draw(start_key, 1)}
        if c.tokens_behind:
            params["memory_tokens"] = draw(token_key, c.tokens_behind)
        return params

    @property
    def write_positions(self) -> int:
        """Positions that a WRITE needs beside the tokens of the context."""
        return self.config.tokens_behind

    def init_lm(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws the parameters of the language model, or takes those given; see `init`."""
        is_plain = lm_params is not None and not any(
            "block" in path for path in flatten_dict(lm_params)
        )
        if is_plain and isinstance(self.config.lm, AssociativeFields):
            lm_params = adopt_transformer(super().init_lm(key), lm_params)
        return super().init_lm(key, lm_params)

    def run_steps(
        self,
        params: Params,
        context_ids: jax.Array,
        memory: Memory | None,
        settings: WriteSettings,
        max_steps: int,
    ) -> tuple[Memory, WriteInfo]:
        """K passes over the contexts; see `MemoryModel.run_steps`.

        Returns:
            The memory, leaves [B, L, ...], and a `WriteInfo` without losses and gradient norms.
        """
        c = self.config
        batch_size = context_ids.shape[0]
        if memory is None:
            start = self._first_memory(params, batch_size)
        else:
            start = swap_batch_and_layers(memory)
        embeddings = self.embed(params, context_ids)
        if c.tokens_behind:
            tokens = params["memory_tokens"].astype(c.lm.dtype)
            tokens = jnp.broadcast_to(tokens, (batch_size, *tokens.shape))
            embeddings = jnp.concatenate([embeddings, tokens], axis=1)
        real = jnp.pad(
            context_ids != c.pad_id, ((0, 0), (0, c.tokens_behind)), constant_values=True
        )

        def one_pass(memory: Memory, _: jax.Array) -> tuple[Memory, None]:
            _, new, _ = self.apply_lm(
                params,
                embeddings,
                memory=memory,
                real=real,
                write=True,
                num_memory_tokens=c.tokens_behind,
            )
            return new, None

        taken = steps_to_take(settings, max_steps, batch_size)

        def pass_of_some(memory: Memory, k: jax.Array) -> tuple[Memory, None]:
            def keep(new: jax.Array, old: jax.Array) -> jax.Array:
                goes_on = (k < taken).reshape(1, -1, *[1] * (new.ndim - 2))
                return jnp.where(goes_on, new, old)

            return jax.tree.map(keep, one_pass(memory, k)[0], memory), None

        def maybe_pass(memory: Memory, k: jax.Array) -> tuple[Memory, None]:
            return step_if((k < taken).any(), pass_of_some, memory, k)

        passes = one_pass if settings.num_steps is None else maybe_pass
        start = vary_like(start, embeddings)
        written, _ = jax.lax.scan(passes, start, jnp.arange(max_steps))
        return swap_batch_and_layers(written), WriteInfo(jnp.zeros((0, batch_size)), (), taken)

    def check_memory(self, params: Params, memory: Memory, batch_size: int) -> None:
        """Raises ValueError unless `memory` is one of this model, for `batch_size` samples."""
        first = jax.eval_shape(lambda: self._first_memory(params, batch_size))
        check_memory(memory, jax.eval_shape(swap_batch_and_layers, first))

    def num_memory_positions(self, memory: Memory) -> int:
        """One: the start vector in front of a query."""
        del memory
        return 1

    def read_logits(
        self,
        params: Params,
        memory: Memory,
        query_ids: jax.Array,
        max_new_tokens: int | None = None,
    ) -> tuple[jax.Array, Any]:
        """Runs `[start; Q]`; see `MemoryModel.read_logits`."""
        batch_size, length = query_ids.shape
        cache = None
        if max_new_tokens is not None:
            cache = self.apply_lm(params, batch_size, 1 + length, method="empty_cache")
        start = params["read_start"].astype(self.config.lm.dtype)
        start = jnp.broadcast_to(start, (batch_size, *start.shape))
        inputs = jnp.concatenate([start, self.embed(params, query_ids)], axis=1)
        memory = swap_batch_and_layers(memory)
        hidden, _, cache = self.apply_lm(params, inputs, memory=memory, cache=cache)
        if cache is not None:
            cache = cache._replace(length=1 + self.query_lengths(query_ids))
            cache = extend_capacity(cache, max_new_tokens or 0)
        return self.apply_lm(params, hidden, method="unembed"), (memory, cache)

    def decode_token(self, params: Params, state: Any, ids: jax.Array) -> tuple[jax.Array, Any]:
        """Takes one more token of each sample; see `MemoryModel.decode_token`."""
        memory, cache = state
        inputs = self.embed(params, ids[:, None])
        hidden, _, cache = self.apply_lm(params, inputs, memory=memory, cache=cache)
        return self.apply_lm(params, hidden[:, 0], method="unembed"), (memory, cache)

    def _first_memory(self, params: Params, batch_size: int) -> Memory:
        """The layers' first memory, leaves [L, B, ...]."""
        nothing = jnp.zeros((batch_size, 1, self.config.lm.width), self.config.lm.dtype)
        return self.apply_lm(params, nothing)[1]
