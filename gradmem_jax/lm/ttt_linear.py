"""TTT-Linear: the state is a linear model trained on the tokens (Sun et al., arXiv 2407.04620)."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.export import register_namedtuple_serialization

from gradmem_jax.checks import require, require_integer, require_number
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.lm.language_model import LayerNorm, LMConfig, dense, layer_swiglu, rms_norm
from gradmem_jax.lm.recurrent_lm import (
    RecurrentLM,
    causal_convolution,
    conv_init,
    count_chunks,
)
from gradmem_jax.lm.rotary import rotary_frequencies, rotate
from gradmem_jax.parallel.any_mesh import vary_like


@dataclasses.dataclass(frozen=True)
class TTTLinearConfig(LMConfig):
    """A TTT-Linear language model: a Transformer with TTT in place of attention.

    Attributes:
        num_heads: H, inner models of a layer.
        mlp_width: hidden size of the SwiGLU MLP; None means `4 * width`.
        conv_size: k, taps of the convolution in front of TTT; 1 sees the token itself only.
        mini_batch_size: m, tokens whose inner gradients are taken at the same weights.
        inner_learning_rate: base of the inner learning rates.
        rope_base: base of the rotary frequencies.
        max_positions: there are none, so by default no sequence is too long.

    Examples:
        >>> config = gradmem_jax.TTTLinearConfig(vocab_size=10, width=8, num_layers=1, num_heads=2)
        >>> config.mini_batch_size
        16
    """

    keeps: ClassVar[str] = "a state"

    num_heads: int = 4
    mlp_width: int | None = None
    conv_size: int = 4
    mini_batch_size: int = 16
    inner_learning_rate: float = 1.0
    rope_base: float = 10_000.0
    max_positions: int = 2**31 - 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_heads", "conv_size", "mini_batch_size"):
            require_integer(name, getattr(self, name), 1)
        if self.mlp_width is not None:
            require_integer("mlp_width", self.mlp_width, 1)
        require_number("inner_learning_rate", self.inner_learning_rate, above=0)
        require_number("rope_base", self.rope_base, above=0)
        require(
            self.width % self.num_heads == 0,
            f"width={self.width} is not a multiple of num_heads={self.num_heads}; "
            "change one of them.",
        )
        require(
            self.head_width % 2 == 0,
            f"width={self.width} and num_heads={self.num_heads} make heads of {self.head_width}; "
            "a head must be even: rotary embedding turns pairs.",
        )

    @property
    def head_width(self) -> int:
        """Dh, width of one inner model."""
        return self.width // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Hidden width of the MLP."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width


class TTTState(NamedTuple):
    """What the inner models of a layer carry from token to token, float32 at least.

    A mini-batch that is full is closed at once: its step is taken, the sums are zero again.

    Attributes:
        weights: [B, H, Dh, Dh], W at the start of the open mini-batch.
        bias: [B, H, Dh], b there.
        weight_gradients: [B, H, Dh, Dh], sum over the open mini-batch of each token's inner
            gradient times its learning rate.
        bias_gradients: [B, H, Dh], the same for b.
        num_tokens: int32 [B], tokens in the open mini-batch, less than m.
    """

    weights: jax.Array
    bias: jax.Array
    weight_gradients: jax.Array
    bias_gradients: jax.Array
    num_tokens: jax.Array


register_namedtuple_serialization(TTTState, serialized_name="gradmem_jax.TTTState")


class InnerTokens(NamedTuple):
    """What the inner models get of each token.

    Attributes:
        query: [B, S, H, Dh].
        key: [B, S, H, Dh].
        value: [B, S, H, Dh].
        rate: [B, S, H], inner learning rate; 0 on padding, which hides it.
        step: [B, S], factor of the sum of gradients that the token sees.
        real: int32 [B, S], 0 on padding.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    rate: jax.Array
    step: jax.Array
    real: jax.Array


def train_on_mini_batch(
    tokens: InnerTokens,
    state: TTTState,
    norm: Callable[[jax.Array], jax.Array],
    mini_batch_size: int,
    last_step: jax.Array,
) -> tuple[jax.Array, TTTState]:
    """Trains the inner models on tokens of one mini-batch, by the dual form.

    No token's own weights are made: token t applies W - step_t * sum_(s <= t) k_s g_s to its
    query as q_t W - step_t * sum_(s <= t) (q_t . k_s) g_s, where g_s is the gradient of the loss
    of token s with respect to W k_s + b, times its learning rate.

    Args:
        tokens: S tokens that go on with the open mini-batch and do not reach beyond its end.
        state: where the inner models are.
        norm: the layer norm of the inner models, [B, S, H, Dh] to the same.
        mini_batch_size: m.
        last_step: the factor `step` of the last token of a mini-batch, a number.

    Returns:
        Outputs [B, S, H, Dh], and the new state.
    """
    query, key, value, rate, step, real = tokens
    weights, bias, weight_sum, bias_sum, num_tokens = state
    predicted, pull_back = jax.vjp(
        norm, jnp.einsum("bshd,bhde->bshe", key, weights) + bias[:, None]
    )
    gradient = rate[..., None] * pull_back(predicted - (value - key))[0]

    # The 1 that is added to q . k makes the same sum for the bias.
    products = jnp.tril(jnp.einsum("bthd,bshd->bhts", query, key) + 1)
    moved = jnp.einsum("bhts,bshe->bthe", products, gradient)
    moved += jnp.einsum("bthd,bhde->bthe", query, weight_sum) + bias_sum[:, None]
    before = jnp.einsum("bthd,bhde->bthe", query, weights) + bias[:, None]
    y = query + norm(before - step[..., None, None] * moved)

    weight_sum = weight_sum + jnp.einsum("bshd,bshe->bhde", key, gradient)
    bias_sum = bias_sum + gradient.sum(axis=1)
    num_tokens = num_tokens + real.sum(axis=1, dtype=num_tokens.dtype)
    full = (num_tokens == mini_batch_size)[:, None, None]
    return y, TTTState(
        jnp.where(full[..., None], weights - last_step * weight_sum, weights),
        jnp.where(full, bias - last_step * bias_sum, bias),
        jnp.where(full[..., None], 0, weight_sum),
        jnp.where(full, 0, bias_sum),
        jnp.where(full[:, 0, 0], 0, num_tokens),
    )


def train_on_tokens(
    tokens: InnerTokens,
    state: TTTState,
    norm: Callable[[jax.Array], jax.Array],
    mini_batch_size: int,
    last_step: jax.Array,
    *,
    fresh: bool,
) -> tuple[jax.Array, TTTState]:
    """Trains the inner models on any number of tokens, one mini-batch after the other.

    Every sample may be somewhere else in its open mini-batch: its tokens are moved to the right by
    as many slots as the mini-batch has tokens already, so that the mini-batches of all samples
    end together. The backward pass makes the insides of a mini-batch again.

    Args:
        tokens: S tokens.
        state: where the inner models are.
        norm: see `train_on_mini_batch`.
        mini_batch_size: m.
        last_step: see `train_on_mini_batch`.
        fresh: promises that no mini-batch is open, which saves the moving.

    Returns:
        Outputs [B, S, H, Dh], and the new state.
    """
    batch_size, length = tokens.real.shape
    aligned = fresh or length == 1
    most = length if aligned else length + mini_batch_size - 1
    size, number = count_chunks(most, mini_batch_size)
    capacity = number * size
    is_full = capacity == length  # not known of a symbolic length
    start = jnp.zeros_like(state.num_tokens) if aligned else state.num_tokens

    def chunks(x: jax.Array) -> jax.Array:
        if not is_full:
            slots = start[:, None] + jnp.arange(length)[None]
            empty = jnp.zeros((batch_size, capacity, *x.shape[2:]), x.dtype)
            x = empty.at[jnp.arange(batch_size)[:, None], slots].set(x)
        return jnp.moveaxis(x.reshape(batch_size, number, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one_mini_batch(state: TTTState, tokens: InnerTokens) -> tuple[TTTState, jax.Array]:
        y, state = train_on_mini_batch(tokens, state, norm, mini_batch_size, last_step)
        return state, y

    state = vary_like(state, tokens)
    state, y = jax.lax.scan(one_mini_batch, state, jax.tree.map(chunks, tokens))
    y = jnp.moveaxis(y, 0, 1).reshape(batch_size, capacity, *y.shape[3:])
    if not is_full:

        def place_back(row: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(row, start, length)

        y = jax.vmap(place_back)(y, start)
    return y, state


class TTT(nn.Module):
    """The sequence part of a layer: an inner model f(k) = LN(W k + b) for each head.

    The inner model learns to reconstruct a value from its key, f(k) + k = v, with the loss
    1/2 ||f(k) - (v - k)||^2, and is then asked for the query, q + f(q). LN has a learned scale and
    bias for each head. The key in the target and the query in the output are those with rotary
    embedding, whose position is counted inside the mini-batch.

    Tokens are taken in mini-batches of m (Sections 2.4 and 2.5 of the paper, the dual form). All
    gradients of a mini-batch are taken at its first weights W, and its t-th token, t counted from 1
    inside the mini-batch, sees W_t = W - step_t * sum_(s <= t) rate_s * gradient_s. Section 2.7
    gives rate_s = base * sigmoid(linear(x_s)), here divided by Dh; this and
    step_t = max(1 / t + a learned offset, 0) are those of the authors' code, which the paper does
    not mention. The next mini-batch starts from W_m.
    """

    config: TTTLinearConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, real: jax.Array, state: TTTState | None
    ) -> tuple[jax.Array, TTTState]:
        """Maps x [B, S, d] to [B, S, d]; `real` and `state` as in `RecurrentLM`."""
        c = self.config
        heads, size, mini_batch_size = c.num_heads, c.head_width, c.mini_batch_size
        dtype = at_least_float32(c.dtype)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros

        def inner_param(name: str, init: nn.initializers.Initializer, *shape: int) -> jax.Array:
            return self.param(name, init, shape, c.param_dtype).astype(dtype)

        scale = inner_param("inner_norm_scale", ones, heads, size)
        shift = inner_param("inner_norm_bias", zeros, heads, size)

        def norm(z: jax.Array) -> jax.Array:
            z = z - z.mean(axis=-1, keepdims=True)
            variance = (z * z).mean(axis=-1, keepdims=True)
            return (
                z * jax.lax.rsqrt(variance + c.norm_epsilon) * scale[None, None] + shift[None, None]
            )

        # Small first weights would make LN, and with it the inner gradients, steep.
        weights = inner_param(
            "inner_weights", nn.initializers.lecun_normal(batch_axis=0), heads, size, size
        )
        bias = inner_param("inner_bias", zeros, heads, size)
        fresh = state is None
        if state is None:
            weights, bias = (
                jnp.broadcast_to(leaf, (x.shape[0], *leaf.shape)) for leaf in (weights, bias)
            )
            nothing = jnp.zeros_like(weights), jnp.zeros_like(bias)
            state = TTTState(weights, bias, *nothing, jnp.zeros(x.shape[0], jnp.int32))

        positions = (state.num_tokens[:, None] + jnp.arange(x.shape[1])[None]) % mini_batch_size
        steps = 1 / jnp.arange(1, mini_batch_size + 1, dtype=dtype)
        steps = jnp.maximum(steps + inner_param("step_offsets", zeros, mini_batch_size), 0)
        rates = nn.sigmoid(dense(c, heads, "inner_rate", use_bias=True)(x).astype(dtype))
        rates = jnp.where(real[..., None], rates * (c.inner_learning_rate / size), 0)
        query, key, value = (
            dense(c, (heads, size), name)(x).astype(dtype) for name in ("query", "key", "value")
        )
        frequencies = rotary_frequencies(size, c.rope_base)
        y, state = train_on_tokens(
            InnerTokens(
                rotate(query, positions, frequencies),
                rotate(key, positions, frequencies),
                value,
                rates,
                steps[positions],
                real.astype(jnp.int32),
            ),
            state,
            norm,
            mini_batch_size,
            steps[-1],
            fresh=fresh,
        )
        output_norm = LayerNorm(c.norm_epsilon, dtype, c.param_dtype, name="output_norm")
        y = output_norm(y.reshape(*x.shape[:2], c.width))
        return dense(c, c.width, "output")(y.astype(c.dtype)), state


class TTTLayerState(NamedTuple):
    """What a layer carries from token to token.

    Attributes:
        conv: [B, k - 1, d], the last inputs of the convolution.
        inner: the inner models.
    """

    conv: jax.Array
    inner: TTTState


register_namedtuple_serialization(TTTLayerState, serialized_name="gradmem_jax.TTTLayerState")


class TTTLinearLayer(nn.Module):
    """One layer: convolution, TTT and MLP, each behind a norm and added to the residual stream."""

    config: TTTLinearConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, real: jax.Array, state: TTTLayerState | None
    ) -> tuple[jax.Array, TTTLayerState]:
        """Maps x [B, S, d] to [B, S, d]; see `RecurrentLM`."""
        c = self.config
        past = jnp.zeros((x.shape[0], c.conv_size - 1, c.width), c.dtype)
        y, conv = causal_convolution(
            rms_norm(c, "conv_norm")(x),
            self.param("conv_kernel", conv_init, (c.conv_size, c.width), c.param_dtype),
            self.param("conv_bias", nn.initializers.zeros, (c.width,), c.param_dtype),
            past if state is None else state.conv,
            real,
        )
        x = x + y
        inner = None if state is None else state.inner
        y, inner = TTT(c, name="ttt")(rms_norm(c, "ttt_norm")(x), real, inner)
        x = x + y
        x = x + layer_swiglu(self, rms_norm(c, "mlp_norm")(x))
        return x, TTTLayerState(conv, inner)


class TTTLinear(RecurrentLM):
    """A TTT-Linear; see `RecurrentLM`."""

    config: TTTLinearConfig
    layer_class = TTTLinearLayer
