"""RMT: a memory written by forward passes over the context, read again K times.

Two segments, as in the official code: WRITE runs `[write_start; M; write_end; C; write_start; M]`
and takes the hidden states of the last m positions as the new memory; READ is that of GradMem.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gradmem_jax.checks import require
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.losses import IGNORE, mean_per_sample
from gradmem_jax.memory.inner_loop import (
    WriteInfo,
    WriteSettings,
    per_sample,
    step_if,
    steps_to_take,
)
from gradmem_jax.memory.prefix import PrefixConfig, PrefixMemory
from gradmem_jax.memory.programs import shared
from gradmem_jax.trees import Params

_LAYER_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class RMTConfig(PrefixConfig):
    """RMT: the memory is written by K forward passes over the same context.

    The WRITE loss that `inner_loss_weight` adds to the outer loss is the loss of predicting the
    context from the memory after each pass, averaged over the passes.

    Attributes:
        memory_projection: linear layer between memory and model: "none", "proj" (in WRITE) or
            "proj_rw" (one in WRITE, another, the identity at the start, in READ).
        memory_residual: from the second pass on the new memory is the old one plus the layer
            norm of the pass's output.

    Examples:
        >>> config = gradmem_jax.RMTConfig(lm=small, num_write_steps=2, memory_residual=True)
        >>> gradmem_jax.RMT(config).config.num_write_steps
        2
    """

    write_head: bool = False
    memory_projection: Literal["none", "proj", "proj_rw"] = "none"
    memory_residual: bool = False


def linear(params: Params, x: jax.Array) -> jax.Array:
    """Applies a kernel and a bias."""
    return x @ params["kernel"] + params["bias"][None, None]


def layer_norm(params: Params, x: jax.Array) -> jax.Array:
    """Layer norm over the last axis, in float32 at least."""
    x = x.astype(at_least_float32(x.dtype))
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    scale, bias = (params[name].astype(x.dtype)[None, None] for name in ("scale", "bias"))
    return centred * jax.lax.rsqrt(variance + _LAYER_NORM_EPSILON) * scale + bias


@dataclasses.dataclass(frozen=True)
class RMT(PrefixMemory[jax.Array]):
    """Pure functions of (params, arrays) that write a context into memory and read from it.

    Attributes:
        config: the model.

    Examples:
        >>> model = gradmem_jax.RMT(gradmem_jax.RMTConfig(lm=small, num_memory_tokens=2))
        >>> params = jax.jit(model.init)(jax.random.key(0))
        >>> memory, _ = model.write_memory(params, context_ids)
        >>> memory.shape  # [B, m, d]
        (2, 2, 8)
    """

    config: RMTConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            getattr(self.lm, "takes_masks", True),
            f"lm={type(self.config.lm).__name__} has a language model whose __call__ takes no "
            "positions and mask, which the forward passes of RMT need; use GradMem.",
        )

    @shared
    def init(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws all parameters.

        Args:
            key: a JAX random key.
            lm_params: parameters of a pretrained language model, see `MemoryModel.init`.

        Returns:
            Nested dict: that of `init_prefix` and, if configured, "projection" and
            "read_projection" (kernel, bias) and "memory_norm" (scale, bias).
        """
        c = self.config
        params = self.init_prefix(key, lm_params)
        dtype, width = c.lm.param_dtype, c.lm.width
        if c.memory_projection != "none":
            keys = jax.random.split(jax.random.fold_in(key, 1))
            bound = width**-0.5
            params["projection"] = {
                "kernel": jax.random.uniform(keys[0], (width, width), dtype, -bound, bound),
                "bias": jax.random.uniform(keys[1], (width,), dtype, -bound, bound),
            }
        if c.memory_projection == "proj_rw":
            kernel, bias = jnp.eye(width, dtype=dtype), jnp.zeros(width, dtype)
            params["read_projection"] = {"kernel": kernel, "bias": bias}
        if c.memory_residual:
            scale, bias = jnp.ones(width, dtype), jnp.zeros(width, dtype)
            params["memory_norm"] = {"scale": scale, "bias": bias}
        return params

    def memory_tokens(self, params: Params, memory: jax.Array, phase: str) -> jax.Array:
        """What enters the model for a memory: [B, m, d], `phase` is "write" or "read"."""
        if phase == "write" and self.config.memory_projection != "none":
            return linear(params["projection"], memory)
        if phase == "read" and self.config.memory_projection == "proj_rw":
            return linear(params["read_projection"], memory)
        return memory

    @property
    def write_positions(self) -> int:
        """Positions that a WRITE needs beside the context: memory stands on both sides of it."""
        return 2 * self.config.prefix_length - self.config.num_control_tokens

    def write_view(self, params: Params) -> tuple[PrefixMemory[jax.Array], Params]:
        """READ through the projection of WRITE too; see `MemoryModel.write_view`."""
        view, seen = super().write_view(params)
        if self.config.memory_projection != "none":
            config: Any = view.config
            config = dataclasses.replace(config, memory_projection="proj_rw")
            view = dataclasses.replace(view, config=config)
            seen["read_projection"] = params["projection"]
        return view, seen

    def run_steps(
        self,
        params: Params,
        context_ids: jax.Array,
        memory: jax.Array | None,
        settings: WriteSettings,
        max_steps: int,
    ) -> tuple[jax.Array, WriteInfo]:
        """K forward passes over the contexts; see `MemoryModel.run_steps`.

        Returns:
            The memory [B, m, d], and a `WriteInfo` without gradient norms. Its losses are
            [K + 1, B], the last row measured on the returned memory, or [0, B] when
            `inner_loss_weight` is 0 and nobody needs them.
        """
        c = self.config
        batch_size = context_ids.shape[0]
        from_initial = memory is None  # which is no memory to add to
        start = self.initial_memory(params, batch_size) if memory is None else memory
        last = steps_to_take(settings, max_steps, batch_size)
        params = self.write_params(params)
        embeddings = self.embed(params, context_ids)
        real = context_ids != c.pad_id
        labels = jnp.where(real, context_ids, IGNORE)
        positions, mask = self._positions_and_mask(real)

        def one_pass(memory: jax.Array, k: jax.Array) -> tuple[jax.Array, Any]:
            prefix = self.prefix(params, memory, "write").embeddings
            suffix = prefix[:, : c.num_control_tokens + c.num_memory_tokens]
            inputs = jnp.concatenate([prefix, embeddings, suffix], axis=1)
            hidden, _ = self.apply_lm(params, inputs, positions=positions, mask=mask)
            new = hidden[:, -c.num_memory_tokens :].astype(start.dtype)
            if c.memory_residual:
                added = memory + layer_norm(params["memory_norm"], new).astype(start.dtype)
                new = jnp.where((k > 0) | (not from_initial), added, new)
            if c.inner_loss_weight:
                before = hidden[:, prefix.shape[1] - 1 : -suffix.shape[1] - 1]
                losses = mean_per_sample(self.hidden_losses(params, before, labels), labels)
            else:
                losses = jnp.zeros(batch_size)
            new = jnp.where(per_sample(k < last, new), new, memory)
            return new, jnp.where(k <= last, losses, 0)

        def maybe_pass(memory: jax.Array, k: jax.Array) -> tuple[jax.Array, Any]:
            return step_if((k < last + with_losses).any(), one_pass, memory, k)

        with_losses = int(c.inner_loss_weight > 0)
        passes = one_pass if settings.num_steps is None else maybe_pass
        written, losses = jax.lax.scan(passes, start, jnp.arange(max_steps + with_losses))
        return written, WriteInfo(losses if with_losses else losses[:0], (), last)

    def outer_write_loss(self, info: WriteInfo) -> jax.Array:
        """The WRITE loss [B] that the outer loss may add: the mean over memories after a pass."""
        if len(info.losses) < 2:
            return jnp.zeros(info.num_steps.shape)
        count = jnp.maximum(info.num_steps, 1).astype(info.losses.dtype)
        return info.losses[1:].sum(axis=0) / count

    def _positions_and_mask(self, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Positions [B, T] that skip padding, and the mask [B, 1, T, T], for real bool [B, S]."""
        c = self.config
        suffix_length = c.num_control_tokens + c.num_memory_tokens
        seen = jnp.pad(real, ((0, 0), (c.prefix_length, suffix_length)), constant_values=True)
        causal = jnp.tril(jnp.ones((1, 1, seen.shape[1], seen.shape[1]), bool))
        return jnp.cumsum(seen, axis=1) - 1, causal & seen[:, None, None, :]
