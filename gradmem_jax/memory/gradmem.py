"""GradMem: a memory written by gradient descent on the loss of reconstructing the context."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import chex
import jax
import jax.numpy as jnp
import optax
import typing_extensions
from jax.export import register_namedtuple_serialization
from jax.typing import ArrayLike

from gradmem_jax.checks import require, require_integer, require_number
from gradmem_jax.dtypes import widened
from gradmem_jax.losses import IGNORE, mean_per_sample
from gradmem_jax.memory.inner_loop import (
    WriteInfo,
    WriteSettings,
    clip_gradient,
    detached,
    gradients_of_steps,
    orders_of_steps,
    per_sample,
    safe_norm,
    scan_steps,
)
from gradmem_jax.memory.meta_gradient import GradientFn, with_derivative_of
from gradmem_jax.memory.prefix import PrefixConfig, PrefixMemory, WriteInputs, copy_per_sample
from gradmem_jax.memory.programs import shared
from gradmem_jax.trees import Params, PyTree, join_floats, split_floats


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

    Examples:
        >>> config = gradmem_jax.GradMemConfig(lm=small, num_write_steps=5, write_learning_rate=1.0)
        >>> first_order = dataclasses.replace(config, gradient_mode="first")
        >>> gradmem_jax.GradMem(first_order).config.num_write_steps
        5
    """

    not_in_read: ClassVar[tuple[str, ...]] = (
        *PrefixConfig.not_in_read,
        "write_learning_rate",
        "clip_value",
        "clip_norm",
        "gradient_mode",
        "second_order_steps",
        "meta_gradient",
    )

    num_write_steps: int = 5
    write_learning_rate: float = 0.4
    learned_write_learning_rate: Literal["none", "shared", "token", "dimension"] = "none"
    memory_projection: Literal["none", "proj", "per_sample"] = "none"
    clip_value: float | None = None
    clip_norm: float | None = None
    gradient_mode: Literal["second", "first", "none"] = "second"
    second_order_steps: int | None = None
    meta_gradient: Literal["mixed", "reverse"] = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("write_learning_rate", self.write_learning_rate, above=0)
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

    Examples:
        >>> config = gradmem_jax.GradMemConfig(
        ...     lm=small, num_memory_tokens=2, memory_projection="per_sample"
        ... )
        >>> model = gradmem_jax.GradMem(config)
        >>> params = jax.eval_shape(model.init, jax.random.key(0))  # shapes only
        >>> memory, _ = jax.eval_shape(model.write_memory, params, context_ids)
        >>> memory.tokens.shape, memory.kernel.shape, memory.bias.shape
        ((2, 2, 8), (2, 8, 8), (2, 8))
    """

    tokens: jax.Array
    kernel: jax.Array
    bias: jax.Array


register_namedtuple_serialization(ProjectedMemory, serialized_name="gradmem_jax.ProjectedMemory")


class WritePrediction(NamedTuple):
    """What WRITE predicts of a context, for a loss of one's own.

    Attributes:
        logits: [B, S, V], position i predicts token i; float32 at least.
        hidden: [B, S, d], final hidden states that the logits are made of.
        labels: int [B, S], the context's ids, `losses.IGNORE` (-100) on padding.

    Examples:
        >>> from gradmem_jax.losses import token_losses
        >>> def last_token_loss(prediction: gradmem_jax.WritePrediction, _) -> jax.Array:
        ...     losses = token_losses(prediction.logits, prediction.labels)  # [B, S]
        ...     return losses[:, -1]
        >>> model = gradmem_jax.GradMem(model.config, write_loss=last_token_loss)
        >>> model.write_memory(params, context_ids)[1].losses.shape  # [K, B]
        (1, 2)
    """

    logits: jax.Array
    hidden: jax.Array
    labels: jax.Array


# What a GradMem writes: `GradMem[ProjectedMemory]` is one with `memory_projection="per_sample"`.
Written = typing_extensions.TypeVar("Written", default=jax.Array)


@dataclasses.dataclass(frozen=True)
class GradMem(PrefixMemory[Written]):
    """Pure functions of (params, arrays) that write a context into memory and read from it.

    Attributes:
        config: the model.
        write_optimizer: optax transformation that makes the update from a sample's gradient, in
            place of plain gradient descent; it carries its own learning rate. Each sample has its
            own optimizer state, and the outer gradient passes through it. Adam needs
            `eps_root > 0` for that.
        write_loss: what WRITE descends in place of the mean cross entropy of the context's tokens:
            `(prediction, loss_data) -> [B]`, a `WritePrediction` and the arrays that
            `write_memory(loss_data=...)` was given. Sample b's loss depends on row b only, and on
            no array from outside that is differentiated: such arrays come as `loss_data`.

    Examples:
        >>> config = gradmem_jax.GradMemConfig(lm=small, num_memory_tokens=2, num_write_steps=1)
        >>> model = gradmem_jax.GradMem(config)
        >>> params = jax.jit(model.init)(jax.random.key(0))
        >>> memory, info = model.write_memory(params, context_ids)
        >>> memory.shape, info.losses.shape  # [B, m, d], [K, B]
        ((2, 2, 8), (1, 2))
        >>> model.read_memory(params, memory, query_ids).shape  # [B, Q + 1, V]
        (2, 3, 10)
    """

    config: GradMemConfig
    write_optimizer: optax.GradientTransformation | None = None
    write_loss: Callable[["WritePrediction", PyTree], jax.Array] | None = None

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
        require(
            self.write_loss is None or callable(self.write_loss),
            f"write_loss={self.write_loss!r} must be a function (prediction, loss_data) -> [B], or "
            "None.",
        )

    @functools.cached_property
    def reader(self) -> Self:
        """This model without what matters to WRITE alone; see `MemoryModel.reader`."""
        return dataclasses.replace(super().reader, write_optimizer=None, write_loss=None)

    @shared
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

    def param_metrics(self, params: Params) -> dict[str, jax.Array]:
        """The mean of each learned alpha: write_learning_rate, and _kernel and _bias behind it."""
        rates = params.get("log_write_learning_rate", {})
        return {
            "write_learning_rate" + ("" if name == "tokens" else f"_{name}"): jnp.exp(rate).mean()
            for name, rate in rates.items()
        }

    def initial_memory(self, params: Params, batch_size: int) -> Any:
        """Returns a copy of M0 for each sample.

        Args:
            params: parameters of `init`.
            batch_size: B.

        Returns:
            [B, m, d], or a `ProjectedMemory`.
        """
        tokens: Any = super().initial_memory(params, batch_size)
        if self.config.memory_projection != "per_sample":
            return tokens
        copies = copy_per_sample(params["projection"], batch_size)
        return ProjectedMemory(tokens, copies["kernel"], copies["bias"])

    @shared
    def write_memory(
        self,
        params: Params,
        context_ids: ArrayLike,
        *,
        memory: Written | None = None,
        num_steps: ArrayLike | None = None,
        max_steps: int | None = None,
        loss_tolerance: ArrayLike | None = None,
        write_learning_rate: ArrayLike | None = None,
        loss_data: PyTree = None,
    ) -> tuple[Written, WriteInfo]:
        """Writes contexts into memory: M <- M - alpha * dL/dM, K times (the paper's WRITE).

        A sample's memory depends on its own context only, not on its batch nor on padding. It is
        compiled once for all equal models, shapes, and numbers of steps.

        Args:
            params: parameters of `init`; they do not change.
            context_ids: int [B, S], padded on the right with `config.pad_id` to any length.
            memory: where to start, for writing on; M0 by default.
            num_steps: K, one number or one for each sample [B]; `config.num_write_steps` by
                default. A traced value needs `max_steps`.
            max_steps: static upper bound of a traced `num_steps`.
            loss_tolerance: a sample is not updated any more once its WRITE loss, in nats a token,
                is not above this, one number or [B]. `second_order_steps` counts from K all the
                same.
            write_learning_rate: alpha, one number or [B], in place of the configured or the learned
                one; it may be traced, differentiated and mapped over.
            loss_data: arrays [B, ...] in any tree, which `write_loss` gets. The outer gradient
                passes those of floating numbers.

        Returns:
            The memory [B, m, d] (or a `ProjectedMemory`), and a `WriteInfo`.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, a context longer than the model's
                positions, a wrong number of steps, or arguments that this model has no use for.
        """
        require(
            write_learning_rate is None or self.write_optimizer is None,
            "write_learning_rate was given, but write_optimizer carries its own learning rate.",
        )
        require(
            loss_data is None or self.write_loss is not None,
            "loss_data was given, but the model has no write_loss that could use it.",
        )
        return self.write(
            params,
            context_ids,
            memory,
            num_steps,
            max_steps,
            loss_tolerance=loss_tolerance,
            write_learning_rate=write_learning_rate,
            loss_data=loss_data,
        )

    def run_steps(
        self,
        params: Params,
        context_ids: jax.Array,
        memory: Written | None,
        settings: WriteSettings,
        max_steps: int,
    ) -> tuple[Written, WriteInfo]:
        """K steps of gradient descent from `memory`; see `MemoryModel.run_steps`."""
        c = self.config
        if memory is None:
            memory = self.initial_memory(params, context_ids.shape[0])
        data, discrete_data = split_floats(settings.loss_data)
        inputs = self.write_inputs(params, memory, context_ids)._replace(loss_data=data)
        labels = jnp.where(context_ids == c.pad_id, IGNORE, context_ids)
        orders, orders_kept = (
            orders_of_steps(
                max_steps,
                c.second_order_steps if c.gradient_mode == "second" else 0,
                traced=settings.num_steps is not None,
                stops=settings.loss_tolerance is not None,
                keep_last=keep,
            )
            for keep in (False, c.meta_gradient == "mixed" and c.lm.keeps_all)
        )
        descend: Callable[..., Any] = functools.partial(self.descend, orders_kept)
        if len(orders) < len(orders_kept) and self.write_optimizer is None:
            # Without a gradient all steps are one loop, which is less to compile.
            descend = with_derivative_of(functools.partial(self.descend, orders), descend)
        rates = self.learning_rates(params, memory, settings.write_learning_rate)
        settings = settings._replace(write_learning_rate=None, loss_data=discrete_data)
        return descend(memory, inputs, (labels, settings), rates)

    def descend(
        self,
        orders: Sequence[tuple[int, str]],
        memory: Written,
        inputs: WriteInputs,
        constants: tuple[jax.Array, WriteSettings],
        rates: Any,
    ) -> tuple[Written, WriteInfo]:
        """K steps of gradient descent.

        Args:
            orders: how the outer gradient passes them, from `orders_of_steps`.
            memory: where to start.
            inputs: what the WRITE loss depends on.
            constants: labels int [B, S], and settings; nothing is differentiated for them.
            rates: alpha, a tree like `memory`.
        """
        c = self.config
        _, settings = constants
        # Without the optimizer, which may close over what is traced: the loss outlives this call.
        loss_fn = dataclasses.replace(self, write_optimizer=None).write_losses
        mixed = c.meta_gradient == "mixed"

        def step(gradient_fn: GradientFn, carry: Any) -> tuple[Any, Any]:
            """M <- M - alpha * dL/dM."""
            memory, state = carry
            losses, gradient = gradient_fn(memory, inputs, constants)
            norms = jax.tree.map(safe_norm, jax.lax.stop_gradient(gradient))
            gradient = clip_gradient(gradient, c.clip_value, c.clip_norm)
            return self.update(memory, gradient, state, rates), (losses, norms)

        (memory, _), info = scan_steps(
            detached(step) if c.gradient_mode == "none" else step,
            (memory, self.init_update(memory)),
            gradients_of_steps(loss_fn, orders, mixed=mixed),
            num_steps=settings.num_steps,
            second_order_steps=c.second_order_steps,
            loss_tolerance=settings.loss_tolerance,
        )
        return memory, info

    def write_losses(
        self, memory: Written, inputs: WriteInputs, constants: tuple[jax.Array, WriteSettings]
    ) -> jax.Array:
        """The WRITE loss L(M; C) of each sample [B]: mean cross entropy of the context's tokens.

        Args:
            memory: a memory of B samples.
            inputs: from `write_inputs`.
            constants: labels int [B, S], the context's ids, `IGNORE` on padding; and settings.
        """
        labels, settings = constants
        hidden = self.context_hidden(memory, inputs)
        if self.write_loss is None:
            return mean_per_sample(self.hidden_losses(inputs.params, hidden, labels), labels)
        logits = self.write_logits(inputs.params, hidden)
        data = join_floats(inputs.loss_data, settings.loss_data)
        losses = self.write_loss(WritePrediction(logits, hidden, labels), data)
        chex.assert_shape(losses, labels.shape[:1], custom_message="write_loss must return [B]")
        return losses

    def init_update(self, memory: Written) -> Any:
        """First state of `update`: that of `write_optimizer` for each sample, if there is one."""
        if self.write_optimizer is None:
            return None
        return jax.vmap(self.write_optimizer.init)(widened(memory))

    def update(
        self, memory: Written, gradient: Written, state: Any, rates: Any
    ) -> tuple[Written, Any]:
        """M - alpha * gradient, or what `write_optimizer` makes of it, and the next state.

        It is computed in float32 where a memory has 16 bits.
        """
        wide, gradient = widened(memory), widened(gradient)
        if self.write_optimizer is not None:
            with jax.numpy_dtype_promotion("standard"):  # optax counts on it
                updates, state = jax.vmap(self.write_optimizer.update)(gradient, state, wide)
                return optax.apply_updates(memory, updates), state

        def descend(x: jax.Array, wide: jax.Array, rate: ArrayLike, g: jax.Array) -> jax.Array:
            return (wide - rate * g).astype(x.dtype)

        return jax.tree.map(descend, memory, wide, rates, gradient), state

    def learning_rates(
        self, params: Params, memory: Written, given: jax.Array | None = None
    ) -> Any:
        """Alpha of every array of a memory, broadcastable to it; a tree like `memory`.

        Args:
            params: parameters of `init`.
            memory: a memory of B samples.
            given: alpha of each sample [B], in place of the model's own.
        """
        c = self.config
        if given is not None:
            return jax.tree.map(lambda x: per_sample(given.astype(x.dtype), x), widened(memory))
        if c.learned_write_learning_rate == "none":
            return jax.tree.map(lambda _: c.write_learning_rate, memory)
        rates = jax.tree.map(jnp.exp, widened(params["log_write_learning_rate"]))
        if isinstance(memory, ProjectedMemory):
            rates = ProjectedMemory(**rates)
        else:
            rates = jax.tree.map(lambda _: rates["tokens"], memory)

        def as_long(rate: jax.Array, x: jax.Array) -> jax.Array:
            return jnp.expand_dims(rate, tuple(range(x.ndim - rate.ndim)))

        return jax.tree.map(as_long, rates, memory)

    def memory_tokens(self, params: Params, memory: Any, phase: str) -> jax.Array:
        """What enters the model for a memory: [B, m, d], the same in both phases."""
        del phase
        if isinstance(memory, ProjectedMemory):
            tokens = jnp.einsum("bmd,bde->bme", memory.tokens, memory.kernel)
            return tokens + memory.bias[:, None]
        if self.config.memory_projection == "proj":
            projection = params["projection"]
            return memory @ projection["kernel"] + projection["bias"][None, None]
        return memory

    def outer_write_loss(self, info: WriteInfo) -> jax.Array:
        """The WRITE loss [B] that the outer loss may add: the last step's, 0 if there is none."""
        is_last = jnp.arange(len(info.losses))[:, None] == info.num_steps[None] - 1
        return jnp.where(is_last, info.losses, 0).sum(axis=0)
