"""Memory as a prefix of a language model: what GradMem and RMT share, with READ."""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gradmem_jax.array_checks import check_key, check_memory
from gradmem_jax.checks import require, require_integer, require_number
from gradmem_jax.lm.attention import KVCache, PartialAttention, extend_capacity
from gradmem_jax.lm.language_model import LanguageModel, project_to_logits
from gradmem_jax.lm.lora import attach_lora, check_adapters, drop_inputs, init_lora, merge_lora
from gradmem_jax.losses import IGNORE, losses_of_hidden
from gradmem_jax.memory.interface import MemoryConfig, MemoryModel, MemoryT
from gradmem_jax.precision import at_model_precision
from gradmem_jax.trees import Params, PyTree


@dataclasses.dataclass(frozen=True)
class PrefixConfig(MemoryConfig):
    """A memory of `num_memory_tokens` vectors that stand before the tokens, as embeddings.

    Attributes:
        num_memory_tokens: m, number of memory vectors.
        write_head: a separate output projection for the WRITE loss, started as a copy of the LM's.
        num_control_tokens: c, learned vectors on each side of the memory, for WRITE and for READ.
        memory_init_std: deviation of the normal distribution M0 and the control tokens start from.
        write_lora_rank: r of low-rank adapters that are active in WRITE only; 0 means none.
        write_lora_alpha: the adapters are scaled by alpha / r.
        write_lora_targets: names of the modules of the language model that have an adapter.
        write_lora_dropout: share of an adapter's inputs that each training step leaves out, the
            same ones for all tokens of its batch.

    Examples:
        >>> config = gradmem_jax.GradMemConfig(lm=small, num_memory_tokens=4, write_lora_rank=2)
        >>> config.num_memory_tokens * config.lm.width  # floats of a sample's memory
        32
    """

    has_write_loss: ClassVar[bool] = True
    takes_lm_without_cache: ClassVar[bool] = True

    num_memory_tokens: int = 8
    write_head: bool = True
    num_control_tokens: int = 0
    memory_init_std: float = 0.02
    write_lora_rank: int = 0
    write_lora_alpha: float = 16.0
    write_lora_targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    write_lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("num_memory_tokens", self.num_memory_tokens, 1)
        require_integer("num_control_tokens", self.num_control_tokens, 0)
        require_number("memory_init_std", self.memory_init_std, above=0)
        require_integer("write_lora_rank", self.write_lora_rank, 0)
        require_number("write_lora_alpha", self.write_lora_alpha, above=0)
        require_number("write_lora_dropout", self.write_lora_dropout)
        require(
            0 <= self.write_lora_dropout < 1,
            f"write_lora_dropout={self.write_lora_dropout} must be in [0, 1), the share left out.",
        )
        require(
            self.write_lora_rank > 0 or self.write_lora_dropout == 0,
            f"write_lora_dropout={self.write_lora_dropout} needs adapters: set write_lora_rank.",
        )
        require(
            self.prefix_length < self.lm.max_positions,
            f"memory and control tokens take {self.prefix_length} positions, the model has "
            f"{self.lm.max_positions}; use fewer or raise lm.max_positions.",
        )

    @property
    def prefix_length(self) -> int:
        """Positions before the first context or query token."""
        return self.num_memory_tokens + 2 * self.num_control_tokens


class WriteInputs(NamedTuple):
    """What the WRITE loss depends on beside the memory.

    Attributes:
        params: parameters as WRITE sees them.
        embeddings: [B, S, d], those of the context.
        partial_attention: of its tokens to themselves in the first layer, if that is known.
        loss_data: floating arrays [B, ...] for a WRITE loss of one's own.
    """

    params: Params
    embeddings: jax.Array
    partial_attention: PartialAttention | None = None
    loss_data: PyTree = None


class Prefix(NamedTuple):
    """What stands before the tokens.

    Attributes:
        embeddings: [B, P, d], input vectors; the last one predicts the first token.
        cache: keys and values that stand before these, if there are any.
    """

    embeddings: jax.Array
    cache: KVCache | None = None


def copy_per_sample(tree: PyTree, batch_size: int) -> PyTree:
    """Gives every sample its own copy of arrays: leaves [...] become [B, ...]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch_size, *x.shape)), tree)


@dataclasses.dataclass(frozen=True)
class PrefixMemory(MemoryModel[MemoryT]):
    """Base of the models whose memory stands before the tokens, as embeddings.

    Attributes:
        config: the model.
    """

    config: PrefixConfig

    def init_prefix(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws the parameters that every such model has.

        Args:
            key: a JAX random key.
            lm_params: parameters of a pretrained language model, see `MemoryModel.init`.

        Returns:
            Nested dict: "lm", "initial_memory" [m, d] and, if configured, "write_head" [d, V],
            "control" (write_start, write_end, read_start, read_end, each [c, d]) and "write_lora".
        """
        check_key(key)
        c = self.config
        lm_key, memory_key, control_key = jax.random.split(key, 3)
        lora_key = jax.random.fold_in(key, 3)
        lm_params = self.init_lm(lm_key, lm_params)

        def draw(key: jax.Array, rows: int) -> jax.Array:
            return c.memory_init_std * jax.random.normal(key, (rows, c.lm.width), c.lm.param_dtype)

        params: Params = {"lm": lm_params, "initial_memory": draw(memory_key, c.num_memory_tokens)}
        if c.write_head:
            head = self.lm.apply({"params": lm_params}, method="head_kernel")
            params["write_head"] = jnp.array(head)
        if c.num_control_tokens:
            keys = jax.random.split(control_key, len(self.control_names))
            params["control"] = {
                name: draw(key, c.num_control_tokens)
                for name, key in zip(self.control_names, keys, strict=True)
            }
        if c.write_lora_rank:
            params["write_lora"] = init_lora(
                lora_key, lm_params, c.write_lora_rank, c.write_lora_targets
            )
            check_adapters(self.lm, lm_params, params["write_lora"])
        return params

    @property
    def write_positions(self) -> int:
        """Positions that a WRITE needs beside the tokens of the context."""
        return self.config.prefix_length

    def write_params(self, params: Params) -> Params:
        """The parameters as WRITE sees them: with its adapters, if there are any."""
        return self._with_adapters(params, attach_lora)

    def _with_adapters(self, params: Params, add: Callable[..., Params]) -> Params:
        c = self.config
        if not c.write_lora_rank:
            return params
        scale = c.write_lora_alpha / c.write_lora_rank
        return params | {"lm": add(params["lm"], params["write_lora"], scale)}

    def training_params(self, params: Params, key: jax.Array) -> Params:
        """The parameters with some inputs of the adapters left out; see `MemoryModel`."""
        share = self.config.write_lora_dropout
        if not share:
            return params
        return params | {"write_lora": drop_inputs(params["write_lora"], key, share)}

    def write_view(self, params: Params) -> tuple["PrefixMemory[MemoryT]", Params]:
        """READ with the head, the adapters and the control tokens of WRITE; see `MemoryModel`."""
        c = self.config
        lm_params = self._with_adapters(params, merge_lora)["lm"]
        view = dataclasses.replace(c, write_lora_rank=0, write_lora_dropout=0.0)
        if c.write_head:
            require(
                isinstance(getattr(self.lm, "lm", self.lm), LanguageModel),
                f"lm={type(c.lm).__name__} has a language model that is no LanguageModel, so the "
                "head of WRITE cannot take the place of its own; set write_head=False.",
            )
            lm_params = lm_params | {"head": params["write_head"]}
            view = dataclasses.replace(view, lm=dataclasses.replace(c.lm, tied_head=False))
        seen = params | {"lm": lm_params}
        if c.num_control_tokens:
            control = params["control"]
            seen["control"] = {name: control[name.replace("read", "write")] for name in control}
        return dataclasses.replace(self, config=view), seen

    @property
    def control_names(self) -> tuple[str, ...]:
        """Names of the groups of control tokens."""
        return ("write_start", "write_end", "read_start", "read_end")

    def initial_memory(self, params: Params, batch_size: int) -> MemoryT:
        """Returns a copy of M0 for each sample.

        Args:
            params: parameters of the model.
            batch_size: B.

        Returns:
            [B, m, d].
        """
        return copy_per_sample(params["initial_memory"], batch_size)

    def memory_tokens(self, params: Params, memory: MemoryT, phase: str) -> jax.Array:
        """What enters the model for a memory: [B, m, d], `phase` is "write" or "read"."""
        raise NotImplementedError

    @at_model_precision
    def write_token_losses(
        self, params: Params, memory: MemoryT, context_ids: jax.Array
    ) -> jax.Array:
        """WRITE loss of every context token [B, S]; see `MemoryModel.write_token_losses`."""
        positions = self.config.prefix_length
        context_ids = self.check_losses(params, memory, context_ids, positions)
        labels = jnp.where(context_ids == self.config.pad_id, IGNORE, context_ids)
        inputs = WriteInputs(self.write_params(params), self.embed(params, context_ids))
        return self.context_token_losses(memory, inputs, labels)

    def check_memory(self, params: Params, memory: MemoryT, batch_size: int) -> None:
        """Raises ValueError unless `memory` is one of this model, for `batch_size` samples."""
        check_memory(memory, jax.eval_shape(lambda: self.initial_memory(params, batch_size)))

    def num_memory_positions(self, memory: MemoryT) -> int:
        """Positions before the first query token."""
        del memory
        return self.config.prefix_length

    def read_logits(
        self,
        params: Params,
        memory: MemoryT,
        query_ids: jax.Array,
        max_new_tokens: int | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs `[read_start; M; read_end; Q]`; see `MemoryModel.read_logits`."""
        prefix = self.prefix(params, memory, "read")
        inputs = jnp.concatenate([prefix.embeddings, self.embed(params, query_ids)], axis=1)
        needs_cache = prefix.cache is not None or max_new_tokens is not None
        cache = self._cache(prefix, inputs.shape[1]) if needs_cache else None
        hidden, cache = self.apply_lm(params, inputs, cache=cache)
        if cache is not None:
            length = self.config.prefix_length + self.query_lengths(query_ids)
            cache = extend_capacity(cache._replace(length=length), max_new_tokens or 0)
        hidden = hidden[:, prefix.embeddings.shape[1] - 1 :]
        return self.apply_lm(params, hidden, method="unembed"), cache

    def read_several(
        self,
        params: Params,
        memory: MemoryT,
        query_ids: jax.Array,
        max_new_tokens: int | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs `[read_start; M; read_end]` once and each of the R queries behind it."""
        if query_ids.shape[1] == 1:
            return super().read_several(params, memory, query_ids, max_new_tokens)
        prefix = self.prefix(params, memory, "read")
        cache = self._cache(prefix, prefix.embeddings.shape[1])
        before, cache = self.apply_lm(params, prefix.embeddings, cache=cache)
        cache = extend_capacity(cache, query_ids.shape[-1] + (max_new_tokens or 0))

        def read(ids: jax.Array) -> tuple[jax.Array, KVCache | None]:
            hidden, grown = self.apply_lm(params, self.embed(params, ids), cache=cache)
            hidden = jnp.concatenate([before[:, -1:], hidden], axis=1)
            state = grown._replace(length=cache.length + self.query_lengths(ids))
            logits = self.apply_lm(params, hidden, method="unembed")
            return logits, None if max_new_tokens is None else state

        return jax.vmap(read, 1, (1, 0))(query_ids)

    def prefix(self, params: Params, memory: MemoryT, phase: str) -> Prefix:
        """What stands before the tokens: here `[start; M; end]`, input vectors.

        Args:
            params: parameters of `init`.
            memory: a memory of B samples.
            phase: "write" or "read".
        """
        tokens = self.memory_tokens(params, memory, phase).astype(self.config.lm.dtype)
        start, end = (
            self.control_tokens(params, f"{phase}_{side}", tokens.shape[0])
            for side in ("start", "end")
        )
        return Prefix(jnp.concatenate([start, tokens, end], axis=1))

    def control_tokens(self, params: Params, name: str, batch_size: int) -> jax.Array:
        """A group of control tokens for each sample: [B, c, d]; c may be 0."""
        c = self.config
        if not c.num_control_tokens:
            return jnp.zeros((batch_size, 0, c.lm.width), c.lm.dtype)
        return copy_per_sample(params["control"][name].astype(c.lm.dtype), batch_size)

    def _cache(self, prefix: Prefix, capacity: int) -> KVCache:
        """A cache of what stands before the prefix's vectors, with a capacity for more tokens."""
        if prefix.cache is not None:
            return extend_capacity(prefix.cache, capacity)
        return self.lm.empty_cache(prefix.embeddings.shape[0], capacity)

    def write_inputs(self, params: Params, memory: MemoryT, context_ids: jax.Array) -> WriteInputs:
        """What every step of a WRITE shares.

        Args:
            params: parameters of `init`.
            memory: a memory to start from; only its structure and shapes are used.
            context_ids: int [B, S].
        """
        write_params = self.write_params(self.own_params(params))
        inputs = WriteInputs(write_params, self.embed(params, context_ids))
        prefix = self.prefix(inputs.params, memory, "write")
        if prefix.cache is not None:  # the first layer attends to it too: nothing is shared
            return inputs
        attention = self.apply_lm(
            inputs.params,
            inputs.embeddings[:, :-1],
            prefix.embeddings.shape[1],
            method="first_layer_attention",
        )
        return inputs._replace(partial_attention=attention)

    def write_logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """What WRITE predicts [B, S, V] from hidden states [B, S, d] before each token."""
        if self.config.write_head:
            softcap = self.config.lm.logit_softcap
            return project_to_logits(hidden, params["write_head"], softcap)
        return self.apply_lm(params, hidden, method="unembed")

    def context_token_losses(
        self, memory: MemoryT, inputs: WriteInputs, labels: jax.Array
    ) -> jax.Array:
        """WRITE loss of each context token [B, S].

        Args:
            memory: a memory of B samples.
            inputs: from `write_inputs`.
            labels: int [B, S], the context's ids, `IGNORE` on padding.
        """
        hidden = self.context_hidden(memory, inputs)
        return self.hidden_losses(inputs.params, hidden, labels)

    def hidden_losses(self, params: Params, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses of WRITE's predictions [B, S] from hidden states [B, S, d] before each token."""
        return losses_of_hidden(functools.partial(self.write_logits, params), hidden, labels)

    def context_hidden(self, memory: MemoryT, inputs: WriteInputs) -> jax.Array:
        """Hidden states [B, S, d] before each token; the last prefix position predicts the first.

        Args:
            memory: a memory of B samples.
            inputs: from `write_inputs`.
        """
        prefix = self.prefix(inputs.params, memory, "write")
        embeddings = jnp.concatenate([prefix.embeddings, inputs.embeddings[:, :-1]], axis=1)
        hidden, _ = self.apply_lm(
            inputs.params,
            embeddings,
            cache=None if prefix.cache is None else self._cache(prefix, embeddings.shape[1]),
            partial_attention=inputs.partial_attention,
        )
        return hidden[:, prefix.embeddings.shape[1] - 1 :]
