"""Mamba: selective state spaces (Gu and Dao, 2023, arXiv 2312.00752)."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.export import register_namedtuple_serialization

from gradmem_jax.checks import require_integer
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.lm.language_model import LMConfig, dense, rms_norm
from gradmem_jax.lm.recurrent_lm import RecurrentLM, causal_convolution, conv_init, scan_chunks


@dataclasses.dataclass(frozen=True)
class MambaConfig(LMConfig):
    """A Mamba language model; the defaults are the model of the paper's KV retrieval runs.

    Attributes:
        state_size: N, size of the state of a channel.
        conv_size: k, taps of the convolution in front of the state space.
        expand: channels E of a layer over width d.
        dt_rank: rank of the projection that makes the time steps; None means d / 16, rounded up.
        chunk_size: tokens that the parallel scan takes at once; bounds memory, not the result.
        max_positions: there are none, so by default no sequence is too long.

    Examples:
        >>> gradmem_jax.MambaConfig(vocab_size=10, width=8, num_layers=1, state_size=4).state_size
        4
    """

    keeps: ClassVar[str] = "a state"

    state_size: int = 16
    conv_size: int = 4
    expand: int = 2
    dt_rank: int | None = None
    chunk_size: int = 64
    max_positions: int = 2**31 - 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("state_size", "conv_size", "expand", "chunk_size"):
            require_integer(name, getattr(self, name), 1)
        if self.dt_rank is not None:
            require_integer("dt_rank", self.dt_rank, 1)

    @property
    def channels(self) -> int:
        """E, channels of a layer."""
        return self.expand * self.width

    @property
    def time_step_rank(self) -> int:
        """Rank of the projection that makes the time steps."""
        return math.ceil(self.width / 16) if self.dt_rank is None else self.dt_rank


class MambaState(NamedTuple):
    """What a layer carries from token to token.

    Attributes:
        conv: [B, k - 1, E], the last inputs of the convolution.
        ssm: [B, E, N], the state of the state space, float32 at least.
    """

    conv: jax.Array
    ssm: jax.Array


register_namedtuple_serialization(MambaState, serialized_name="gradmem_jax.MambaState")


def dt_bias_init(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Draws biases whose softplus, the time step, is log-uniform in [0.001, 0.1]."""
    low, high = math.log(1e-3), math.log(1e-1)
    step = jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high))
    return (step + jnp.log(-jnp.expm1(-step))).astype(dtype)


def selective_scan(
    x: jax.Array,
    step: jax.Array,
    rates: jax.Array,
    write: jax.Array,
    read: jax.Array,
    state: jax.Array,
    chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Runs h_t = exp(step_t * rates) * h_(t-1) + step_t * x_t * write_t and y_t = h_t . read_t.

    The tokens of a chunk are combined by an associative scan, one chunk after the other; the
    backward pass makes the states of a chunk again instead of keeping them.

    Args:
        x: [B, S, E].
        step: [B, S, E]; a token with step 0 changes nothing.
        rates: [E, N], negative.
        write: [B, S, N].
        read: [B, S, N].
        state: [B, E, N], h before the first token.
        chunk_size: tokens of a chunk.

    Returns:
        y [B, S, E], and h after the last token.
    """

    def combine(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    def one_chunk(state: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x, step, write, read = inputs
        decay = jnp.exp(step[..., None] * rates[None, None])
        update = (step * x)[..., None] * write[:, :, None]
        decay, update = jax.lax.associative_scan(combine, (decay, update), axis=1)
        states = decay * state[:, None] + update
        return states[:, -1], jnp.einsum("bsen,bsn->bse", states, read)

    return scan_chunks(one_chunk, state, (x, step, write, read), chunk_size)


class MambaLayer(nn.Module):
    """One layer: norm, projection, convolution, state space and gate, added to the stream."""

    config: MambaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, real: jax.Array, state: MambaState | None
    ) -> tuple[jax.Array, MambaState]:
        """Maps x [B, S, d] to [B, S, d]; see `RecurrentLM`."""
        c = self.config
        channels, rank, size = c.channels, c.time_step_rank, c.state_size
        dtype = at_least_float32(c.dtype)
        if state is None:
            state = MambaState(
                jnp.zeros((x.shape[0], c.conv_size - 1, channels), c.dtype),
                jnp.zeros((x.shape[0], channels, size), dtype),
            )
        inner, gate = jnp.split(
            dense(c, 2 * channels, "in_proj")(rms_norm(c, "norm")(x)), 2, axis=-1
        )
        inner, conv = causal_convolution(
            inner,
            self.param("conv_kernel", conv_init, (c.conv_size, channels), c.param_dtype),
            self.param("conv_bias", nn.initializers.zeros, (channels,), c.param_dtype),
            state.conv,
            real,
        )
        inner = nn.silu(inner)
        low_rank, write, read = jnp.split(
            dense(c, rank + 2 * size, "x_proj")(inner), [rank, rank + size], axis=-1
        )
        step = dense(c, channels, "dt_proj", use_bias=True, bias_init=dt_bias_init)(low_rank)
        step = jnp.where(real[..., None], nn.softplus(step.astype(dtype)), 0)
        log_rates = self.param("A_log", rate_init, (channels, size), c.param_dtype)
        rates = -jnp.exp(log_rates.astype(dtype))
        y, ssm = selective_scan(
            inner.astype(dtype),
            step,
            rates,
            write.astype(dtype),
            read.astype(dtype),
            state.ssm,
            c.chunk_size,
        )
        skip = self.param("D", nn.initializers.ones, (channels,), c.param_dtype)
        y = y + inner.astype(dtype) * skip.astype(dtype)[None, None]
        y = y.astype(c.dtype) * nn.silu(gate)
        return x + dense(c, c.width, "out_proj")(y), MambaState(conv, ssm)


def rate_init(key: jax.Array, shape: tuple[int, int], dtype: str) -> jax.Array:
    """Logarithms of 1, 2, ..., N for every channel."""
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype)), shape)


class Mamba(RecurrentLM):
    """A Mamba; see `RecurrentLM`."""

    config: MambaConfig
    layer_class = MambaLayer
