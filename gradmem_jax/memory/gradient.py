"""GradMem: a memory written by gradient descent on the loss of reconstructing the context."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradmem_jax.config import GradMemConfig, require
from gradmem_jax.lm.attention import KVCache
from gradmem_jax.lm.llama import Llama
from gradmem_jax.losses import IGNORE, mean_per_sample, token_losses
from gradmem_jax.memory.inner_loop import (
    WriteInfo,
    clip_gradient,
    run_write_steps,
    step_modes,
)
from gradmem_jax.validation import check_ids, check_length, check_memory, resolve_steps

Params = dict[str, Any]


class ProjectedMemory(NamedTuple):
    """Memory of `memory_projection="per_sample"`: each sample has its own projection.

    Attributes:
        tokens: [B, m, d], memory tokens before the projection.
        kernel: [B, d, d], projected = tokens @ kernel + bias.
        bias: [B, d].
    """

    tokens: jax.Array
    kernel: jax.Array
    bias: jax.Array


Memory = jax.Array | ProjectedMemory


@dataclasses.dataclass(frozen=True)
class GradMem:
    """Pure functions of (params, arrays) that write a context into memory and read from it.

    Attributes:
        config: the model.
        write_optimizer: optax transformation that makes the update from a sample's gradient, in
            place of plain gradient descent; it carries its own learning rate. Each sample has its
            own optimizer state, and the outer gradient passes through it. Adam needs
            `eps_root > 0` for that.

    Example:
        >>> model = GradMem(GradMemConfig(lm=LlamaConfig(vocab_size=70)))
        >>> params = model.init(jax.random.key(0))
        >>> memory, info = jax.jit(model.write_memory)(params, context_ids)
        >>> logits = jax.jit(model.read_memory)(params, memory, query_ids)
    """

    config: GradMemConfig
    write_optimizer: optax.GradientTransformation | None = None

    def __post_init__(self) -> None:
        c = self.config
        require(
            self.write_optimizer is None or c.learned_write_learning_rate == "none",
            "write_optimizer carries its own learning rate: set learned_write_learning_rate="
            f"'none', not {c.learned_write_learning_rate!r}.",
        )

    @property
    def lm(self) -> Llama:
        """The language model, a Flax module without parameters."""
        return Llama(self.config.lm)

    def init(self, key: jax.Array) -> Params:
        """Draws all parameters.

        Args:
            key: a JAX random key.

        Returns:
            Nested dict: "lm", "initial_memory" [m, d] and, if configured, "write_head" [d, V],
            "projection" (kernel, bias), "control" (write_start, write_end, read_start, read_end,
            each [c, d]) and "log_write_learning_rate".
        """
        c = self.config
        lm_key, memory_key, control_key = jax.random.split(key, 3)
        ids = jnp.zeros((1, 1), jnp.int32)
        lm_params = self.lm.init(lm_key, ids, method="everything")["params"]
        dtype, width = c.lm.param_dtype, c.lm.width
        draw = lambda key, rows: c.memory_init_std * jax.random.normal(key, (rows, width), dtype)
        params: Params = {"lm": lm_params, "initial_memory": draw(memory_key, c.num_memory_tokens)}
        if c.write_head:
            head = self.lm.apply({"params": lm_params}, method="head_kernel")
            params["write_head"] = jnp.array(head)
        if c.memory_projection != "none":
            params["projection"] = {
                "kernel": jnp.eye(width, dtype=dtype),
                "bias": jnp.zeros(width, dtype),
            }
        if c.num_control_tokens:
            names = ("write_start", "write_end", "read_start", "read_end")
            keys = jax.random.split(control_key, len(names))
            params["control"] = {
                name: draw(key, c.num_control_tokens) for name, key in zip(names, keys, strict=True)
            }
        shapes = {"shared": (), "token": (c.num_memory_tokens, 1), "dimension": (width,)}
        if c.learned_write_learning_rate != "none":
            log_rate = jnp.log(c.write_learning_rate)
            start = lambda *shape: jnp.full(shape, log_rate, dtype)
            rates = {"tokens": start(*shapes[c.learned_write_learning_rate])}
            if c.memory_projection == "per_sample":
                rates |= {"kernel": start(), "bias": start()}
            params["log_write_learning_rate"] = rates
        return params

    def apply_lm(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Calls the language model, or the `method` of it, with its part of the parameters."""
        return self.lm.apply({"params": params["lm"]}, *args, **kwargs)

    def initial_memory(self, params: Params, batch_size: int) -> Memory:
        """Returns a copy of M0 for each sample.

        Args:
            params: parameters of `init`.
            batch_size: B.

        Returns:
            [B, m, d], or a `ProjectedMemory`.
        """
        spread = lambda x: jnp.broadcast_to(x, (batch_size, *x.shape))
        tokens = spread(params["initial_memory"])
        if self.config.memory_projection != "per_sample":
            return tokens
        projection = params["projection"]
        return ProjectedMemory(tokens, spread(projection["kernel"]), spread(projection["bias"]))

    def write_memory(
        self,
        params: Params,
        context_ids: jax.Array,
        *,
        memory: Memory | None = None,
        num_steps: int | jax.Array | None = None,
        max_steps: int | None = None,
        loss_tolerance: float | jax.Array | None = None,
    ) -> tuple[Memory, WriteInfo]:
        """Writes contexts into memory: M <- M - alpha * dL/dM, K times (the paper's WRITE).

        A sample's memory depends on its own context only, not on its batch nor on padding.

        Args:
            params: parameters of `init`; they do not change.
            context_ids: int [B, S], padded on the right with `config.pad_id` to any length.
            memory: where to start, for writing on; M0 by default.
            num_steps: K; `config.num_write_steps` by default. A traced value needs `max_steps`.
            max_steps: static upper bound of a traced `num_steps`.
            loss_tolerance: a sample is not updated any more once its WRITE loss, in nats a token,
                is not above this.

        Returns:
            The memory [B, m, d] (or a `ProjectedMemory`), and a `WriteInfo`.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, a context longer than the model's
                positions, or a wrong number of steps.
        """
        c = self.config
        context_ids = check_ids("context_ids", context_ids, ("B", "S"), c.lm.vocab_size)
        check_length("context_ids", context_ids.shape[1], c.prefix_length, c.lm.max_positions)
        batch_size = context_ids.shape[0]
        start = self.initial_memory(params, batch_size) if memory is None else memory
        if memory is not None:
            check_memory(memory, jax.eval_shape(lambda: self.initial_memory(params, batch_size)))
        num_steps = c.num_write_steps if num_steps is None else num_steps
        steps, traced_steps = resolve_steps(num_steps, max_steps)
        if c.gradient_mode == "none":
            start = jax.lax.stop_gradient(start)
        embeddings = self._embed(params, context_ids)
        labels = jnp.where(context_ids == c.pad_id, IGNORE, context_ids)
        memory, info = run_write_steps(
            self._write_loss,
            lambda memory, gradient, state: self._update(params, memory, gradient, state),
            start,
            (params, embeddings),
            labels,
            self._init_optimizer(start),
            step_modes(
                steps,
                c.gradient_mode,
                c.second_order_steps,
                c.meta_gradient,
                differentiable_loss=c.inner_loss_weight > 0,
            ),
            num_steps=traced_steps,
            loss_tolerance=loss_tolerance,
        )
        if not c.inner_loss_weight:
            info = info._replace(losses=jax.lax.stop_gradient(info.losses))
        return memory, info

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

    def _prefix(self, params: Params, memory: Memory, phase: str) -> jax.Array:
        """What stands before the tokens: [B, 2c + m, d], `phase` is "write" or "read"."""
        if isinstance(memory, ProjectedMemory):
            tokens = jnp.einsum("bmd,bde->bme", memory.tokens, memory.kernel)
            tokens = tokens + memory.bias[:, None]
        elif self.config.memory_projection == "proj":
            tokens = memory @ params["projection"]["kernel"] + params["projection"]["bias"]
        else:
            tokens = memory
        tokens = tokens.astype(self.config.lm.dtype)
        if not self.config.num_control_tokens:
            return tokens
        spread = lambda x: jnp.broadcast_to(x, (tokens.shape[0], *x.shape)).astype(tokens.dtype)
        start, end = (spread(params["control"][f"{phase}_{side}"]) for side in ("start", "end"))
        return jnp.concatenate([start, tokens, end], axis=1)

    def _write_token_losses(
        self, memory: Memory, slow: tuple[Params, jax.Array], labels: jax.Array
    ) -> jax.Array:
        """Loss of each context token: [B, S]. The last prefix position predicts the first one."""
        params, embeddings = slow
        prefix = self._prefix(params, memory, "write")
        inputs = jnp.concatenate([prefix, embeddings[:, :-1]], axis=1)
        hidden, _ = self.apply_lm(params, inputs)
        hidden = hidden[:, prefix.shape[1] - 1 :]
        if self.config.write_head:
            logits = hidden @ params["write_head"].astype(hidden.dtype)
        else:
            logits = self.apply_lm(params, hidden, method="unembed")
        return token_losses(logits, labels)

    def _write_loss(
        self, memory: Memory, slow: tuple[Params, jax.Array], labels: jax.Array
    ) -> jax.Array:
        return mean_per_sample(self._write_token_losses(memory, slow, labels), labels)

    def _init_optimizer(self, memory: Memory) -> Any:
        return None if self.write_optimizer is None else jax.vmap(self.write_optimizer.init)(memory)

    def _update(
        self, params: Params, memory: Memory, gradient: Memory, state: Any
    ) -> tuple[Memory, Any]:
        c = self.config
        gradient = clip_gradient(gradient, c.clip_value, c.clip_norm)
        if self.write_optimizer is not None:
            updates, state = jax.vmap(self.write_optimizer.update)(gradient, state, memory)
            return optax.apply_updates(memory, updates), state
        descend = lambda rate: lambda x, g: (x - rate * g).astype(x.dtype)
        if c.learned_write_learning_rate == "none":
            return jax.tree.map(descend(c.write_learning_rate), memory, gradient), state
        rates = jax.tree.map(jnp.exp, params["log_write_learning_rate"])
        if not isinstance(memory, ProjectedMemory):
            return descend(rates["tokens"])(memory, gradient), state
        return ProjectedMemory(
            *(descend(rates[n])(getattr(memory, n), getattr(gradient, n)) for n in memory._fields)
        ), state
