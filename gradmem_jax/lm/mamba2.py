"""Mamba-2: state space duality (Dao and Gu, 2024, arXiv 2405.21060)."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.export import register_namedtuple_serialization

from gradmem_jax.checks import require, require_integer
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.lm.language_model import LMConfig, dense, rms_norm
from gradmem_jax.lm.mamba import dt_bias_init
from gradmem_jax.lm.recurrent_lm import (
    RecurrentLM,
    causal_convolution,
    conv_init,
    count_chunks,
    scan_chunks,
)


@dataclasses.dataclass(frozen=True)
class Mamba2Config(LMConfig):
    """A Mamba-2 language model, one group of B and C for all heads.

    Attributes:
        state_size: N, size of the state of a channel.
        conv_size: k, taps of the convolution in front of the state space.
        expand: channels E of a layer over width d.
        head_width: P, channels that share a decay; divides E.
        chunk_size: tokens that are taken at once, as in attention; bounds memory, not the result.
        max_positions: there are none, so by default no sequence is too long.

    Examples:
        >>> gradmem_jax.Mamba2Config(vocab_size=10, width=8, num_layers=1, head_width=4).head_width
        4
    """

    keeps: ClassVar[str] = "a state"

    state_size: int = 64
    conv_size: int = 4
    expand: int = 2
    head_width: int = 32
    chunk_size: int = 64
    max_positions: int = 2**31 - 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("state_size", "conv_size", "expand", "head_width", "chunk_size"):
            require_integer(name, getattr(self, name), 1)
        require(
            self.channels % self.head_width == 0,
            f"expand * width = {self.channels} is not a multiple of head_width={self.head_width}; "
            "change one of them.",
        )

    @property
    def channels(self) -> int:
        """E, channels of a layer."""
        return self.expand * self.width

    @property
    def num_heads(self) -> int:
        """H, heads of a layer."""
        return self.channels // self.head_width


class Mamba2State(NamedTuple):
    """What a layer carries from token to token.

    Attributes:
        conv: [B, k - 1, E + 2 N], the last inputs of the convolution.
        ssm: [B, H, P, N], the state of the state space, float32 at least.
    """

    conv: jax.Array
    ssm: jax.Array


register_namedtuple_serialization(Mamba2State, serialized_name="gradmem_jax.Mamba2State")


def state_space_dual(
    log_decay: jax.Array,
    update: jax.Array,
    write: jax.Array,
    read: jax.Array,
    state: jax.Array,
    chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Runs h_t = exp(log_decay_t) h_(t-1) + update_t write_t^T and y_t = h_t read_t.

    Inside a chunk y is a masked attention of `read` over `write`, whose mask holds the decay
    between two tokens; from chunk to chunk goes h. The backward pass makes the insides of a chunk
    again instead of keeping them.

    Args:
        log_decay: [B, S, H], not positive.
        update: [B, S, H, P].
        write: [B, S, N].
        read: [B, S, N].
        state: [B, H, P, N], h before the first token.
        chunk_size: tokens of a chunk.

    Returns:
        y [B, S, H, P], and h after the last token.
    """
    size, _ = count_chunks(read.shape[1], chunk_size)
    causal = jnp.tril(jnp.ones((size, size), bool))[None, ..., None]

    def one_chunk(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        log_decay, update, write, read = inputs
        total = log_decay.cumsum(axis=1)
        # Masked before exp: what comes later would be a growth, and may overflow.
        between = jnp.exp(jnp.where(causal, total[:, :, None] - total[:, None], -jnp.inf))
        scores = jnp.einsum("btn,bsn->bts", read, write)[..., None] * between
        y = jnp.einsum("btsh,bshp->bthp", scores, update)
        y += jnp.einsum("btn,bhpn,bth->bthp", read, state, jnp.exp(total))
        kept = between[:, -1]  # from each token to the end of the chunk
        state = jnp.exp(total[:, -1])[..., None, None] * state
        return state + jnp.einsum("bsh,bshp,bsn->bhpn", kept, update, write), y

    return scan_chunks(one_chunk, state, (log_decay, update, write, read), chunk_size)


class Mamba2Layer(nn.Module):
    """One layer: norm, projection, convolution, state space, gated norm, added to the stream."""

    config: Mamba2Config

    @nn.compact
    def __call__(
        self, x: jax.Array, real: jax.Array, state: Mamba2State | None
    ) -> tuple[jax.Array, Mamba2State]:
        """Maps x [B, S, d] to [B, S, d]; see `RecurrentLM`."""
        c = self.config
        channels, heads, size = c.channels, c.num_heads, c.state_size
        mixed = channels + 2 * size
        dtype = at_least_float32(c.dtype)
        if state is None:
            state = Mamba2State(
                jnp.zeros((x.shape[0], c.conv_size - 1, mixed), c.dtype),
                jnp.zeros((x.shape[0], heads, c.head_width, size), dtype),
            )
        gate, inner, step = jnp.split(
            dense(c, channels + mixed + heads, "in_proj")(rms_norm(c, "norm")(x)),
            [channels, channels + mixed],
            axis=-1,
        )
        inner, conv = causal_convolution(
            inner,
            self.param("conv_kernel", conv_init, (c.conv_size, mixed), c.param_dtype),
            self.param("conv_bias", nn.initializers.zeros, (mixed,), c.param_dtype),
            state.conv,
            real,
        )
        inner, write, read = jnp.split(
            nn.silu(inner).astype(dtype), [channels, channels + size], axis=-1
        )
        inner = inner.reshape(*x.shape[:2], heads, c.head_width)
        bias = self.param("dt_bias", dt_bias_init, (heads,), c.param_dtype)
        step = nn.softplus(step.astype(dtype) + bias.astype(dtype)[None, None])
        step = jnp.where(real[..., None], step, 0)
        log_rates = self.param("A_log", log_rate_init, (heads,), c.param_dtype)
        y, ssm = state_space_dual(
            -step * jnp.exp(log_rates.astype(dtype))[None, None],
            step[..., None] * inner,
            write,
            read,
            state.ssm,
            c.chunk_size,
        )
        skip = self.param("D", nn.initializers.ones, (heads,), c.param_dtype)
        y = y + inner * skip.astype(dtype)[None, None, :, None]
        y = y.reshape(*x.shape[:2], channels)
        y = rms_norm(c, "gated_norm")(y.astype(c.dtype) * nn.silu(gate))
        return x + dense(c, c.width, "out_proj")(y), Mamba2State(conv, ssm)


def log_rate_init(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Logarithms of rates that are uniform in [1, 16]."""
    return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1, 16)).astype(dtype)


class Mamba2(RecurrentLM):
    """A Mamba-2; see `RecurrentLM`."""

    config: Mamba2Config
    layer_class = Mamba2Layer
