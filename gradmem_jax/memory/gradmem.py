"""GradMem: a memory written by gradient descent on the loss of reconstructing the context."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradmem_jax.array_checks import check_tolerance
from gradmem_jax.checks import require, require_choice, require_integer, require_number
from gradmem_jax.losses import IGNORE, mean_per_sample
from gradmem_jax.memory.inner_loop import (
    WriteInfo,
    clip_gradient,
    detached,
    gradients_of_steps,
    orders_of_steps,
    safe_norm,
    scan_steps,
)
from gradmem_jax.memory.meta_gradient import GradientFn
from gradmem_jax.memory.prefix import PrefixConfig, PrefixMemory, WriteInputs, copy_per_sample
from gradmem_jax.parallel.micro_batches import write_in_parts
from gradmem_jax.trees import Params


@dataclasses.dataclass(frozen=True)
class GradMemConfig(PrefixConfig):
    """GradMem: the memory is written by gradient descent.

    The WRITE loss that `inner_loss_weight` adds to the outer loss is that of the last step.

    It has the fields of `PrefixConfig` too (`num_memory_tokens`, `write_head`,
    `num_control_tokens`, `memory_init_std`, `write_lora_rank` and others of the adapters), and of
    `MemoryConfig` (`lm`, `num_write_steps`, `inner_loss_weight`, `pad_id`), explained there.

    Attributes:
        write_learning_rate: alpha, also the starting value of a learned one.
        learned_write_learning_rate: "none" keeps alpha fixed; "shared" learns one number, "token"
            one for each memory token, "dimension" one for each of the d dimensions. Learned
            rates are kept positive by learning their logarithm.
        memory_projection: linear layer between memory and model, the identity at the start:
            "none", "proj" (shared, trained by the outer loop only) or "per_sample" (each sample's
            own copy is updated by the WRITE too).
        clip_value: each component of the WRITE gradient is clipped to [-clip_value, clip_value].
        clip_norm: largest norm of a sample's WRITE gradient, for each array of its memory; longer
            ones are scaled down.
        gradient_mode: how the outer gradient passes an update of the memory: "second" exactly,
            "first" as if the WRITE gradient were a constant, "none" not at all.
        second_order_steps: only the last so many of the K steps are "second"; None means all. They
            are counted back from K, for a sample too that stops earlier, at its `loss_tolerance`.
        meta_gradient: how "second" is computed: "mixed" (forward over reverse, memory does not
            grow with K; of one or two such steps the last one keeps its linearised gradient,
            unless `lm.remat` says that memory is short) or "reverse" (plain reverse over reverse).
            Both give the same numbers.
    """

    num_write_steps: int = 5
    write_learning_rate: float = 0.4
    learned_write_learning_rate: str = "none"
    memory_projection: str = "none"
    clip_value: float | None = None
    clip_norm: float | None = None
    gradient_mode: str = "second"
    second_order_steps: int | None = None
    meta_gradient: str = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("write_learning_rate", self.write_learning_rate, above=0)
        require_choice(
            "learned_write_learning_rate",
            self.learned_write_learning_rate,
            ("none", "shared", "token", "dimension"),
        )
        require_choice("memory_projection", self.memory_projection, ("none", "proj", "per_sample"))
        require_choice("gradient_mode", self.gradient_mode, ("second", "first", "none"))
        require_choice("meta_gradient", self.meta_gradient, ("mixed", "reverse"))
        for name in ("clip_value", "clip_norm"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), above=0)
        if self.second_order_steps is not None:
            require_integer("second_order_steps", self.second_order_steps, 0)
            require(
                self.gradient_mode == "second",
                f"second_order_steps={self.second_order_steps} needs gradient_mode='second', "
                f"not {self.gradient_mode!r}; leave it None.",
            )


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
class GradMem(PrefixMemory):
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
        super().__post_init__()
        c = self.config
        require(
            self.write_optimizer is None
            or isinstance(self.write_optimizer, optax.GradientTransformation),
            f"write_optimizer={self.write_optimizer!r} must be an optax transformation such as "
            "optax.adam(0.1, eps_root=1e-8), or None.",
        )
        require(
            self.write_optimizer is None or c.learned_write_learning_rate == "none",
            "write_optimizer carries its own learning rate: set learned_write_learning_rate="
            f"'none', not {c.learned_write_learning_rate!r}.",
        )

    def init(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws all parameters.

        Args:
            key: a JAX random key.
            lm_params: parameters of a pretrained language model, see `MemoryModel.init`.

        Returns:
            Nested dict: that of `init_prefix` and, if configured, "projection" (kernel, bias) and
            "log_write_learning_rate".
        """
        c = self.config
        params = self.init_prefix(key, lm_params)
        dtype, width = c.lm.param_dtype, c.lm.width
        if c.memory_projection != "none":
            params["projection"] = {
                "kernel": jnp.eye(width, dtype=dtype),
                "bias": jnp.zeros(width, dtype),
            }
        shapes = {"shared": (), "token": (c.num_memory_tokens, 1), "dimension": (width,)}
        if c.learned_write_learning_rate != "none":
            log_rate = jnp.log(c.write_learning_rate)
            rates = {"tokens": jnp.full(shapes[c.learned_write_learning_rate], log_rate, dtype)}
            if c.memory_projection == "per_sample":
                rates |= {name: jnp.full((), log_rate, dtype) for name in ("kernel", "bias")}
            params["log_write_learning_rate"] = rates
        return params

    def initial_memory(self, params: Params, batch_size: int) -> Any:
        """Returns a copy of M0 for each sample.

        Args:
            params: parameters of `init`.
            batch_size: B.

        Returns:
            [B, m, d], or a `ProjectedMemory`.
        """
        tokens = super().initial_memory(params, batch_size)
        if self.config.memory_projection != "per_sample":
            return tokens
        copies = copy_per_sample(params["projection"], batch_size)
        return ProjectedMemory(tokens, copies["kernel"], copies["bias"])

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
                is not above this. `second_order_steps` counts from K all the same.

        Returns:
            The memory [B, m, d] (or a `ProjectedMemory`), and a `WriteInfo`.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, a context longer than the model's
                positions, or a wrong number of steps.
        """
        check_tolerance("loss_tolerance", loss_tolerance)
        steps = self.resolve_steps(num_steps, max_steps)
        memory, context_ids = self.check_write(params, memory, context_ids)

        def write(context_ids: jax.Array, memory: Memory) -> tuple[Memory, WriteInfo]:
            return self.run_steps(params, context_ids, memory, steps, loss_tolerance)

        return write_in_parts(write, context_ids, memory, self.num_write_parts)

    def run_steps(
        self,
        params: Params,
        context_ids: jax.Array,
        memory: Memory,
        steps: tuple[int, int | jax.Array],
        loss_tolerance: float | jax.Array | None = None,
    ) -> tuple[Memory, WriteInfo]:
        """The inner loop: K steps of gradient descent from `memory`; see `write_memory`.

        Args:
            params: parameters of `init`.
            context_ids: int [B, S].
            memory: where to start.
            steps: from `resolve_steps`.
            loss_tolerance: see `write_memory`.
        """
        c = self.config
        inputs = self.write_inputs(params, memory, context_ids)
        labels = jnp.where(context_ids == c.pad_id, IGNORE, context_ids)

        def step(gradient_fn: GradientFn, carry: Any) -> tuple[Any, Any]:
            """M <- M - alpha * dL/dM."""
            memory, state = carry
            losses, gradient = gradient_fn(memory, inputs, labels)
            norms = jax.tree.map(safe_norm, jax.lax.stop_gradient(gradient))
            gradient = clip_gradient(gradient, c.clip_value, c.clip_norm)
            return self.update(params, memory, gradient, state), (losses, norms)

        bound, num_steps = steps
        traced = None if isinstance(num_steps, int) else num_steps
        orders = orders_of_steps(
            bound,
            c.second_order_steps if c.gradient_mode == "second" else 0,
            differentiable_loss=c.inner_loss_weight > 0,
            traced=traced is not None,
            stops=loss_tolerance is not None,
            keep_last=c.meta_gradient == "mixed" and c.lm.remat == "none",
        )
        (memory, _), info = scan_steps(
            detached(step) if c.gradient_mode == "none" else step,
            (memory, self.init_update(memory)),
            gradients_of_steps(self.write_losses, orders, mixed=c.meta_gradient == "mixed"),
            num_steps=traced,
            second_order_steps=c.second_order_steps,
            loss_tolerance=loss_tolerance,
        )
        if not c.inner_loss_weight:
            info = info._replace(losses=jax.lax.stop_gradient(info.losses))
        return memory, info

    def write_losses(self, memory: Memory, inputs: WriteInputs, labels: jax.Array) -> jax.Array:
        """The WRITE loss L(M; C) of each sample [B]: mean cross entropy of the context's tokens.

        Args:
            memory: a memory of B samples.
            inputs: from `write_inputs`.
            labels: int [B, S], the context's ids, `IGNORE` on padding.
        """
        return mean_per_sample(self.context_token_losses(memory, inputs, labels), labels)

    def init_update(self, memory: Memory) -> Any:
        """First state of `update`: that of `write_optimizer` for each sample, if there is one."""
        return None if self.write_optimizer is None else jax.vmap(self.write_optimizer.init)(memory)

    def update(
        self, params: Params, memory: Memory, gradient: Memory, state: Any
    ) -> tuple[Memory, Any]:
        """M - alpha * gradient, or what `write_optimizer` makes of it, and the next state."""
        if self.write_optimizer is not None:
            updates, state = jax.vmap(self.write_optimizer.update)(gradient, state, memory)
            return optax.apply_updates(memory, updates), state

        def descend(x: jax.Array, rate: jax.typing.ArrayLike, g: jax.Array) -> jax.Array:
            return (x - rate * g).astype(x.dtype)

        return jax.tree.map(descend, memory, self.learning_rates(params, memory), gradient), state

    def learning_rates(self, params: Params, memory: Memory) -> Any:
        """Alpha of every array of a memory, broadcastable to it; a tree like `memory`."""
        c = self.config
        if c.learned_write_learning_rate == "none":
            return jax.tree.map(lambda _: c.write_learning_rate, memory)
        rates = jax.tree.map(jnp.exp, params["log_write_learning_rate"])
        if isinstance(memory, ProjectedMemory):
            return ProjectedMemory(**rates)
        return jax.tree.map(lambda _: rates["tokens"], memory)

    def memory_tokens(self, params: Params, memory: Memory, phase: str) -> jax.Array:
        """What enters the model for a memory: [B, m, d], the same in both phases."""
        del phase
        if isinstance(memory, ProjectedMemory):
            tokens = jnp.einsum("bmd,bde->bme", memory.tokens, memory.kernel)
            return tokens + memory.bias[:, None]
        if self.config.memory_projection == "proj":
            return memory @ params["projection"]["kernel"] + params["projection"]["bias"]
        return memory

    def outer_write_loss(self, info: WriteInfo) -> jax.Array:
        """The WRITE loss [B] that the outer loss may add: the last step's, 0 if there is none."""
        is_last = jnp.arange(len(info.losses))[:, None] == info.num_steps - 1
        return jnp.where(is_last, info.losses, 0).sum(axis=0)
