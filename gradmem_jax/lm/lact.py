"""LaCT: test-time training of fast weights in large chunks (Zhang et al. 2026, arXiv 2505.23884).

Every layer has, beside attention over a window, fast weights f(x) = W1 (silu(W0 x) * (W2 x)) in
heads. A chunk of tokens reads them, f(q), and then trains them by one step that raises
sum_i lr_i <f(k_i), v_i>, after which every row is brought back to the norm it started with. With
`muon` the step's gradient is made orthogonal first. q and k are rescaled copies of those of
attention, through silu and normalised, without positions. Momentum over chunks is left out.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.export import register_namedtuple_serialization

from gradmem_jax.checks import require, require_integer, require_number
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.lm.attention import attend
from gradmem_jax.lm.language_model import RMSNorm, dense, layer_swiglu, rms_norm
from gradmem_jax.lm.layer_memory_lm import LayerMemoryLM, Segment
from gradmem_jax.lm.llama import LlamaConfig, require_plain_llama
from gradmem_jax.lm.recurrent_lm import scan_chunks
from gradmem_jax.lm.rotary import rotary_frequencies, rotate

_EPSILON = 1e-5
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, five iterations
_NEWTON_SCHULZ_STEPS = 5


@dataclasses.dataclass(frozen=True)
class LaCTConfig(LlamaConfig):
    """A Llama with fast weights in every layer; no grouped-query attention.

    Attributes:
        num_fast_heads: heads of the fast weights, each of width d / heads.
        fast_expand: hidden width of a head's fast weights over its width.
        chunk_size: tokens of one step.
        window_size: tokens that attention sees, the newest one included.
        inner_learning_rate: learning rate of a token at the start of training.
        muon: whether the gradient of a step is made orthogonal.

    Examples:
        >>> config = gradmem_jax.LaCTConfig(vocab_size=10, width=8, num_heads=2, chunk_size=16)
        >>> gradmem_jax.LayerMemoryConfig(lm=config).lm.muon
        True
    """

    keeps: ClassVar[str] = "fast weights"

    num_fast_heads: int = 2
    fast_expand: int = 1
    chunk_size: int = 64
    window_size: int = 64
    inner_learning_rate: float = 0.01
    muon: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_plain_llama(self)
        for name in ("num_fast_heads", "fast_expand", "chunk_size", "window_size"):
            require_integer(name, getattr(self, name), 1)
        require_number("inner_learning_rate", self.inner_learning_rate, above=0)
        require(
            self.width % self.num_fast_heads == 0,
            f"width={self.width} is not a multiple of num_fast_heads={self.num_fast_heads}.",
        )
        require(
            self.kv_heads == self.num_heads and self.head_size * self.num_heads == self.width,
            f"num_kv_heads={self.num_kv_heads} and head_width={self.head_width} must be None: fast "
            "weights share keys and values of the full width with attention.",
        )


class FastWeights(NamedTuple):
    """Fast weights of a layer, [B, heads, outputs, inputs] each.

    Attributes:
        gate: W0.
        out: W1.
        up: W2.
    """

    gate: jax.Array
    out: jax.Array
    up: jax.Array


register_namedtuple_serialization(FastWeights, serialized_name="gradmem_jax.FastWeights")


def apply_fast(weights: FastWeights, x: jax.Array) -> jax.Array:
    """f(x) for x [B, S, heads, w]."""
    hidden = nn.silu(_product(weights.gate, x)) * _product(weights.up, x)
    return _product(weights.out, hidden)


def _product(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Weights [B, heads, o, i] by x [B, S, heads, i]: [B, S, heads, o]."""
    return jnp.einsum("bhoi,bshi->bsho", weights, x)


def _outer(left: jax.Array, right: jax.Array) -> jax.Array:
    """[B, S, heads, o] by [B, S, heads, i], summed over tokens: [B, heads, o, i]."""
    return jnp.einsum("bsho,bshi->bhoi", left, right)


def orthogonalize(gradient: jax.Array) -> jax.Array:
    """Newton-Schulz iteration that brings the singular values of [..., o, i] close to one."""
    a, b, c = _NEWTON_SCHULZ
    size = jnp.sqrt(jnp.square(gradient).sum(axis=(-2, -1), keepdims=True) + _EPSILON**2)
    x = gradient / size
    for _ in range(_NEWTON_SCHULZ_STEPS):
        product = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * product + c * product @ product) @ x
    return x


def row_norms(w: jax.Array) -> jax.Array:
    """Norms of the rows of [..., o, i] as [..., o, 1], with a gradient at zero."""
    return jnp.sqrt(jnp.square(w).sum(axis=-1, keepdims=True) + _EPSILON**2)


def train_fast(
    weights: FastWeights,
    norms: FastWeights,
    keys: jax.Array,
    values: jax.Array,
    rates: FastWeights,
    muon: bool,
) -> FastWeights:
    """One step on a chunk.

    Args:
        weights: the fast weights.
        norms: what every row's norm is brought back to.
        keys: [B, C, heads, w].
        values: [B, C, heads, w].
        rates: learning rate of each token for each weight, [B, C, heads, 1].
        muon: whether the gradient is made orthogonal.

    Returns:
        The new fast weights; the old ones of samples whose rates are all zero.
    """
    gate, up = _product(weights.gate, keys), _product(weights.up, keys)
    silu, silu_pullback = jax.vjp(nn.silu, gate)
    hidden_gradient = jnp.einsum("bhoi,bsho->bshi", weights.out, values)
    gradient = FastWeights(
        gate=_outer(rates.gate * silu_pullback(hidden_gradient * up)[0], keys),
        out=_outer(rates.out * values, silu * up),
        up=_outer(rates.up * hidden_gradient * silu, keys),
    )
    if muon:
        gradient = jax.tree.map(orthogonalize, gradient)
    trained = (rates.gate + rates.out + rates.up).sum(axis=(1, 2, 3))[:, None, None, None] > 0

    def step(w: jax.Array, gradient: jax.Array, norm: jax.Array) -> jax.Array:
        new = w + gradient
        return jnp.where(trained, new / row_norms(new) * norm, w)

    return jax.tree.map(step, weights, gradient, norms)


class LaCTLayer(nn.Module):
    """One layer: window attention plus fast weights, then the MLP."""

    config: LaCTConfig

    @nn.compact
    def __call__(self, x: jax.Array, segment: Segment, state: Any) -> tuple[jax.Array, Any]:
        """Maps x [B, S, d] to [B, S, d]; see `LayerMemoryLM`."""
        c = self.config
        weights, cached = state
        dtype = at_least_float32(c.dtype)
        first = self._first_weights(x.shape[0], dtype)
        weights = first if weights is None else weights

        y = rms_norm(c, "attention_norm")(x)
        query, key, value = (dense(c, c.width, name)(y) for name in ("query", "key", "value"))
        attended, new = self._attend(query, key, value, segment, cached)

        query = self._fast("fast_query", query, dtype)
        key = self._fast("fast_key", key, dtype)
        value = self._heads(nn.silu(value.astype(dtype)))
        heads = c.num_fast_heads
        start = math.log(math.expm1(c.inner_learning_rate))
        rates = dense(c, 3 * heads, "rates", use_bias=True)(y).astype(dtype)
        rates = jnp.where(segment.real[..., None], nn.softplus(rates + start), 0)
        if segment.write:
            read, weights = self._train(weights, first, query, key, value, rates)
        else:
            read = apply_fast(weights, query)
        norm = RMSNorm(c.norm_epsilon, dtype, c.param_dtype, name="fast_norm")
        scale = nn.silu(dense(c, heads, "fast_scale", use_bias=True)(y))[..., None].astype(dtype)
        read = (norm(read) * scale).reshape(x.shape).astype(x.dtype)
        x = x + dense(c, c.width, "output")(attended + read)
        return x + layer_swiglu(self, rms_norm(c, "mlp_norm")(x)), (weights, new)

    def _first_weights(self, batch_size: int, dtype: Any) -> FastWeights:
        c = self.config
        heads, width = c.num_fast_heads, c.width // c.num_fast_heads
        hidden = c.fast_expand * width
        draw = nn.initializers.variance_scaling(1.0, "fan_in", "normal", -1, -2, (0,))
        shapes = {"gate": (hidden, width), "out": (width, hidden), "up": (hidden, width)}
        return FastWeights(
            **{
                name: jnp.broadcast_to(
                    self.param(f"fast_{name}", draw, (heads, *shape), c.param_dtype).astype(dtype),
                    (batch_size, heads, *shape),
                )
                for name, shape in shapes.items()
            }
        )

    def _attend(
        self, query: jax.Array, key: jax.Array, value: jax.Array, segment: Segment, cached: Any
    ) -> tuple[jax.Array, Any]:
        c, positions = self.config, segment.attention.positions
        frequencies = rotary_frequencies(c.head_size, c.rope_base, c.rope_scaling)
        shape = (*query.shape[:2], c.num_heads, c.head_size)
        query, key, value = (x.reshape(shape) for x in (query, key, value))
        query, key = (rotate(x, positions, frequencies) for x in (query, key))
        y = attend(
            query, key, value, segment.attention.mask, cached, segment.attention.cache_mask
        ).mean
        y = y.astype(query.dtype)
        return y.reshape(*y.shape[:2], c.width), None if cached is None else (key, value)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.config.num_fast_heads, -1)

    def _fast(self, name: str, x: jax.Array, dtype: Any) -> jax.Array:
        """Rescales, activates and normalises a query or key of attention."""
        c = self.config
        scale = self.param(f"{name}_scale", nn.initializers.ones, (c.width,), c.param_dtype)
        offset = self.param(f"{name}_offset", nn.initializers.zeros, (c.width,), c.param_dtype)
        scale, offset = (w.astype(dtype)[None, None] for w in (scale, offset))
        x = self._heads(nn.silu(x.astype(dtype) * scale + offset))
        return x / row_norms(x)

    def _train(
        self,
        weights: FastWeights,
        first: FastWeights,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        rates: jax.Array,
    ) -> tuple[jax.Array, FastWeights]:
        """Chunk after chunk: read, then one step."""
        c = self.config
        norms = jax.tree.map(row_norms, first)

        def one_chunk(weights: FastWeights, inputs: Any) -> tuple[FastWeights, jax.Array]:
            query, key, value, rates = inputs
            rates = FastWeights(*(r[..., None] for r in jnp.split(rates, 3, axis=-1)))
            new = train_fast(weights, norms, key, value, rates, c.muon)
            return new, apply_fast(weights, query)

        return scan_chunks(one_chunk, weights, (query, key, value, rates), c.chunk_size)


class LaCT(LayerMemoryLM):
    """The language model of LaCT; see `LayerMemoryLM`."""

    config: LaCTConfig
    layer_class = LaCTLayer

    @property
    def window(self) -> int | None:
        """How many tokens attention sees, the newest one included."""
        return self.config.window_size
