"""Memory as a prefix of a language model: what GradMem and RMT share, with READ."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.config import PrefixConfig
from gradmem_jax.lm.attention import KVCache
from gradmem_jax.lm.llama import Llama
from gradmem_jax.losses import IGNORE, token_losses
from gradmem_jax.memory.inner_loop import WriteInfo
from gradmem_jax.validation import check_ids, check_length, check_memory

Params = dict[str, Any]
Memory = Any


@dataclasses.dataclass(frozen=True)
class PrefixMemory:
    """Base of the models whose memory stands before the tokens, as embeddings.

    Attributes:
        config: the model.
    """

    config: PrefixConfig

    @property
    def lm(self) -> Llama:
        """The language model, a Flax module without parameters."""
        return Llama(self.config.lm)

    def init_prefix(self, key: jax.Array) -> Params:
        """Draws the parameters that every such model has.

        Args:
            key: a JAX random key.

        Returns:
            Nested dict: "lm", "initial_memory" [m, d] and, if configured, "write_head" [d, V] and
            "control" (write_start, write_end, read_start, read_end, each [c, d]).
        """
        c = self.config
        lm_key, memory_key, control_key = jax.random.split(key, 3)
        ids = jnp.zeros((1, 1), jnp.int32)
        lm_params = self.lm.init(lm_key, ids, method="everything")["params"]
        shape = (c.lm.width,)
        draw = lambda key, rows: (
            c.memory_init_std * jax.random.normal(key, (rows, *shape), c.lm.param_dtype)
        )
        params: Params = {"lm": lm_params, "initial_memory": draw(memory_key, c.num_memory_tokens)}
        if c.write_head:
            head = self.lm.apply({"params": lm_params}, method="head_kernel")
            params["write_head"] = jnp.array(head)
        if c.num_control_tokens:
            names = ("write_start", "write_end", "read_start", "read_end")
            keys = jax.random.split(control_key, len(names))
            params["control"] = {
                name: draw(key, c.num_control_tokens) for name, key in zip(names, keys, strict=True)
            }
        return params

    def apply_lm(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Calls the language model, or the `method` of it, with its part of the parameters."""
        return self.lm.apply({"params": params["lm"]}, *args, **kwargs)

    def initial_memory(self, params: Params, batch_size: int) -> Memory:
        """Returns a copy of M0 for each sample.

        Args:
            params: parameters of the model.
            batch_size: B.

        Returns:
            [B, m, d].
        """
        tokens = params["initial_memory"]
        return jnp.broadcast_to(tokens, (batch_size, *tokens.shape))

    def init(self, key: jax.Array) -> Params:
        """Draws all parameters."""
        raise NotImplementedError

    def write_memory(
        self,
        params: Params,
        context_ids: jax.Array,
        *,
        memory: Memory | None = None,
        num_steps: int | jax.Array | None = None,
        max_steps: int | None = None,
    ) -> tuple[Memory, WriteInfo]:
        """Writes contexts into memory (the paper's WRITE).

        Args:
            params: parameters of `init`; they do not change.
            context_ids: int [B, S], padded on the right with `config.pad_id` to any length.
            memory: where to start, for writing on; M0 by default.
            num_steps: K; `config.num_write_steps` by default. A traced value needs `max_steps`.
            max_steps: static upper bound of a traced `num_steps`.

        Returns:
            The memory, and a `WriteInfo`.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, a context longer than the model's
                positions, or a wrong number of steps.
        """
        raise NotImplementedError

    def outer_write_loss(self, info: WriteInfo) -> jax.Array:
        """The WRITE loss [B] that `inner_loss_weight` adds to the outer loss."""
        raise NotImplementedError

    def memory_tokens(self, params: Params, memory: Memory, phase: str) -> jax.Array:
        """What enters the model for a memory: [B, m, d], `phase` is "write" or "read"."""
        raise NotImplementedError

    def read_memory(self, params: Params, memory: Memory, query_ids: jax.Array) -> jax.Array:
        """Predicts the tokens of queries from memory alone (the paper's READ).

        Args:
            params: parameters of `init`.
            memory: what `write_memory` returned for B samples.
            query_ids: int [B, Q], or [B, R, Q] for R queries of each sample; padded on the right.

        Returns:
            Logits [B, Q + 1, V] or [B, R, Q + 1, V]. Position i predicts query token i; the last
            one predicts the token behind the query.

        Raises:
            ValueError: wrong shapes, or ids outside the vocabulary.
        """
        memory, flat_ids = self.check_read(params, memory, query_ids)
        logits, _ = self.read_hidden(params, memory, flat_ids)
        return logits.reshape(*query_ids.shape[:-1], *logits.shape[1:])

    def write_token_losses(
        self, params: Params, memory: Memory, context_ids: jax.Array
    ) -> jax.Array:
        """WRITE loss of every context token given a memory.

        Args:
            params: parameters of `init`.
            memory: a memory of B samples.
            context_ids: int [B, S].

        Returns:
            [B, S] in nats, 0 on padding.
        """
        labels = jnp.where(context_ids == self.config.pad_id, IGNORE, context_ids)
        return self._write_token_losses(memory, (params, self._embed(params, context_ids)), labels)

    def check_write(
        self, params: Params, memory: Memory | None, context_ids: jax.typing.ArrayLike, length: int
    ) -> tuple[Memory, jax.Array]:
        """Checks the input of a WRITE.

        Args:
            params: parameters of `init`.
            memory: where to start; None means M0.
            context_ids: int [B, S].
            length: positions that the WRITE needs beside the context.

        Returns:
            The memory to start from, and int [B, S].

        Raises:
            ValueError: wrong shapes, or ids outside the vocabulary.
        """
        c = self.config
        context_ids = check_ids("context_ids", context_ids, ("B", "S"), c.lm.vocab_size)
        check_length("context_ids", context_ids.shape[1], length, c.lm.max_positions)
        initial = lambda: self.initial_memory(params, context_ids.shape[0])
        if memory is None:
            return initial(), context_ids
        check_memory(memory, jax.eval_shape(initial))
        return memory, context_ids

    def check_read(
        self, params: Params, memory: Memory, query_ids: jax.typing.ArrayLike
    ) -> tuple[Memory, jax.Array]:
        """Checks the input of a READ and gives every query a memory of its own.

        Args:
            params: parameters of `init`.
            memory: a memory of B samples.
            query_ids: int [B, Q] or [B, R, Q].

        Returns:
            Memory of B * R samples, and int [B * R, Q].

        Raises:
            ValueError: wrong shapes, or ids outside the vocabulary.
        """
        c = self.config
        axes = ("B", "R", "Q") if jnp.ndim(query_ids) == 3 else ("B", "Q")
        query_ids = check_ids("query_ids", query_ids, axes, c.lm.vocab_size)
        check_length("query_ids", query_ids.shape[-1], c.prefix_length, c.lm.max_positions)
        batch_size = query_ids.shape[0]
        check_memory(memory, jax.eval_shape(lambda: self.initial_memory(params, batch_size)))
        if query_ids.ndim == 3:
            repeats = query_ids.shape[1]
            memory = jax.tree.map(lambda x: jnp.repeat(x, repeats, axis=0), memory)
        return memory, query_ids.reshape(-1, query_ids.shape[-1])

    def read_hidden(
        self, params: Params, memory: Memory, query_ids: jax.Array, cache: KVCache | None = None
    ) -> tuple[jax.Array, Any]:
        """One forward pass over memory and queries, `[read_start; M; read_end; Q]`.

        Args:
            params: parameters of `init`.
            memory: a memory of B samples.
            query_ids: int [B, Q].
            cache: an empty key-value cache to fill, if decoding follows.

        Returns:
            Logits [B, Q + 1, V] from the last prefix position on, and the filled cache.
        """
        prefix = self._prefix(params, memory, "read")
        inputs = jnp.concatenate([prefix, self._embed(params, query_ids)], axis=1)
        hidden, cache = self.apply_lm(params, inputs, cache=cache)
        hidden = hidden[:, prefix.shape[1] - 1 :]
        return self.apply_lm(params, hidden, method="unembed"), cache

    def _embed(self, params: Params, ids: jax.Array) -> jax.Array:
        return self.apply_lm(params, ids, method="embed")

    def _control(self, params: Params, name: str, batch_size: int) -> jax.Array:
        """Control tokens [B, c, d]; c may be 0."""
        c = self.config
        if not c.num_control_tokens:
            return jnp.zeros((batch_size, 0, c.lm.width), c.lm.dtype)
        tokens = params["control"][name].astype(c.lm.dtype)
        return jnp.broadcast_to(tokens, (batch_size, *tokens.shape))

    def _prefix(self, params: Params, memory: Memory, phase: str) -> jax.Array:
        """What stands before the tokens: [B, 2c + m, d], `phase` is "write" or "read"."""
        tokens = self.memory_tokens(params, memory, phase).astype(self.config.lm.dtype)
        start, end = (
            self._control(params, f"{phase}_{side}", len(tokens)) for side in ("start", "end")
        )
        return jnp.concatenate([start, tokens, end], axis=1)

    def _write_losses(self, params: Params, hidden: jax.Array, labels: jax.Array) -> jax.Array:
        """WRITE loss of each context token [B, S] from hidden states [B, S, d] before it."""
        if self.config.write_head:
            logits = hidden @ params["write_head"].astype(hidden.dtype)
        else:
            logits = self.apply_lm(params, hidden, method="unembed")
        return token_losses(logits, labels)

    def _write_token_losses(
        self, memory: Memory, slow: tuple[Params, jax.Array], labels: jax.Array
    ) -> jax.Array:
        """Loss of each context token: [B, S]. The last prefix position predicts the first one."""
        params, embeddings = slow
        prefix = self._prefix(params, memory, "write")
        inputs = jnp.concatenate([prefix, embeddings[:, :-1]], axis=1)
        hidden, _ = self.apply_lm(params, inputs)
        hidden = hidden[:, prefix.shape[1] - 1 :]
        return self._write_losses(params, hidden, labels)
