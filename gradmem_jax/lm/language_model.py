"""What every causal language model shares: embedding, a stack of layers, final norm, head."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradmem_jax.checks import (
    ENABLE_X64,
    Dtype,
    check_fields,
    is_symbolic,
    require,
    require_integer,
    require_number,
)
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.lm.products import dot_general, saves_products
from gradmem_jax.token_chunks import join_tokens, split_tokens
from gradmem_jax.trees import PyTree

Activation = Literal["silu", "gelu_tanh"]
Remat = Literal["auto", "none", "full", "dots"]
REMAT_POLICIES = get_args(Remat)
MatmulPrecision = Literal["highest", "high", "default"]


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """What every language model has.

    Attributes:
        vocab_size: V, number of token ids.
        width: d, size of embeddings and residual stream.
        num_layers: L.
        max_positions: longest sequence, memory and control tokens included.
        norm_epsilon: epsilon of RMSNorm.
        norm_offset: what is added to the scales of norms; with 1 they start at 0 (Gemma).
        logit_softcap: c of logits that become `c * tanh(logit / c)`, those of WRITE too; None
            leaves them.
        tied_head: use the embedding matrix as output projection too.
        init: "normal" draws every matrix with deviation `init_std` (the paper); "fan_in" uses
            LeCun initialisation with unit-scale embeddings.
        init_std: deviation for `init="normal"`.
        dtype: compute dtype; logits, losses and softmax stay in float32 at least.
        param_dtype: dtype of the parameters.
        scan_layers: run the layers as one `lax.scan` over stacked parameters (short compile).
        remat: what the backward pass recomputes in a layer: "none" (keep all), "dots" (keep
            matrix products), "full" (keep only the layer's input). "auto" is "none"; programs for
            training take "full" on accelerators without room for it.
        matmul_precision: of products of float32 on TPU and GPU, as JAX names it. "highest" is
            float32, as the official numbers are; "default" is the fastest: operands are rounded to
            bfloat16 on TPU, to TF32 on recent GPUs; "high" lies between. WRITE and READ follow it;
            a language model on its own follows `jax.default_matmul_precision`.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class PlainConfig(lm.LMConfig):
        ...     keeps = "nothing"
        >>> PlainConfig(vocab_size=10, width=8).num_layers
        4
    """

    keeps: ClassVar[str] = "keys and values"
    # Fields that a memory does not depend on: how parameters start, and what is recomputed.
    not_in_read: ClassVar[tuple[str, ...]] = ("init", "init_std", "remat")

    vocab_size: int
    width: int = 128
    num_layers: int = 4
    max_positions: int = 2048
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0
    logit_softcap: float | None = None
    tied_head: bool = False
    init: Literal["normal", "fan_in"] = "normal"
    init_std: float = 0.02
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    scan_layers: bool = False
    remat: Remat = "auto"
    matmul_precision: MatmulPrecision = "highest"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dtype", "param_dtype"):
            value = getattr(self, name)
            require(
                jax.dtypes.canonicalize_dtype(value) == value,
                f"{name}={value!r} would be float32; {ENABLE_X64}",
            )
        for name in ("vocab_size", "width", "num_layers", "max_positions"):
            require_integer(name, getattr(self, name), 1)
        require_number("norm_epsilon", self.norm_epsilon, above=0)
        require_number("init_std", self.init_std, above=0)
        require_number("norm_offset", self.norm_offset)
        if self.logit_softcap is not None:
            require_number("logit_softcap", self.logit_softcap, above=0)

    def has_param(self, path: str) -> bool:
        """Whether the model has a parameter that only some models of its family have.

        Args:
            path: such as "layers/gate/bias" or "head", whether layers are stacked or not.
        """
        return not (self.tied_head and path == "head")

    @property
    def keeps_all(self) -> bool:
        """Whether a backward pass finds all that it needs, and recomputes nothing."""
        return self.remat in ("auto", "none")


_LARGEST_HIDDEN = 2**26  # bytes of an MLP's hidden layer that are there at once
_CHUNK_BYTES = 2**24  # of a larger one
_FEWEST_TOKENS = 16  # of a sample that go together
_REMAT_POLICIES = {
    "full": None,
    "dots": saves_products,
}


def kernel_init(config: LMConfig) -> nn.initializers.Initializer:
    """Initialiser of every matrix but the embedding.

    Examples:
        >>> lm.kernel_init(small)(jax.random.key(0), (8, 16)).shape
        (8, 16)
    """
    if config.init == "fan_in":
        return nn.initializers.lecun_normal()
    return nn.initializers.normal(config.init_std)


class Dense(nn.DenseGeneral):
    """A linear layer that adds the low-rank change of lora.py, if that stands beside its kernel."""

    dot_general: Any = dot_general

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps the last axes [..., inputs] to [..., outputs]."""
        outputs = super().__call__(inputs)
        if not self.has_variable("params", "lora_a"):
            return outputs
        lora_a, lora_b = (
            jnp.asarray(self.get_variable("params", name), outputs.dtype)
            for name in ("lora_a", "lora_b")
        )
        num_axes = 1 if isinstance(self.axis, int) else len(self.axis)
        joined = inputs.reshape(*inputs.shape[: inputs.ndim - num_axes], -1).astype(outputs.dtype)
        return outputs + (joined @ lora_a @ lora_b).reshape(outputs.shape)


def dense(config: LMConfig, features: Any, name: str, **options: Any) -> Dense:
    """A linear layer without bias, unless `options` say otherwise.

    Examples:
        >>> layer = lm.dense(small, 16, "up")
        >>> y, _ = layer.init_with_output(jax.random.key(0), jnp.ones((2, 8)))
        >>> y.shape
        (2, 16)
    """
    options = {"use_bias": False, "kernel_init": kernel_init(config)} | options
    return Dense(features, dtype=config.dtype, param_dtype=config.param_dtype, name=name, **options)


def num_stacked_axes(path: Sequence[str]) -> int:
    """Says how many leading axes of a parameter are those of stacked layers, 0 or 1.

    Args:
        path: names of the modules around it, and its own.
    """
    return int("layers" in path)


def kernel_axes(path: Sequence[str], num_axes: int) -> tuple[int, int]:
    """Says how many axes of the kernel of a linear layer are leading ones and how many inputs.

    Leading is the axis of stacked layers; `output` takes heads together; the others are outputs.

    Args:
        path: names of the modules around it, and its own.
        num_axes: how many axes it has.
    """
    num_leading = num_stacked_axes(path)
    joins_heads = path[-2] == "output" and num_axes - num_leading == 3
    return num_leading, 2 if joins_heads else 1


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, float32 at least inside.

    It is Flax's to the bit, gradients too, but never mixes types.

    Attributes:
        epsilon: what keeps the division finite.
        dtype: of the result.
        param_dtype: of the parameters.
        offset: what is added to the scale, which starts at 1 less this.
    """

    epsilon: float
    dtype: Any
    param_dtype: Any
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., d] to [..., d]."""
        dtype = at_least_float32(x.dtype)
        variance = jnp.square(x.astype(dtype)).mean(axis=-1, keepdims=True)
        return self.scaled(x.astype(dtype), variance).astype(self.dtype)

    def scaled(self, x: jax.Array, variance: jax.Array) -> jax.Array:
        """Divides x [..., d] by the root of its variance [..., 1] and multiplies by the scale."""
        scale = self.vector("scale", nn.initializers.constant(1 - self.offset), x)
        scale = scale + self.offset if self.offset else scale
        return x * (jax.lax.rsqrt(variance + self.epsilon) * scale)

    def vector(self, name: str, init: nn.initializers.Initializer, x: jax.Array) -> jax.Array:
        """A parameter [d] as [..., d] and of the type of x [..., d]."""
        values = self.param(name, init, x.shape[-1:], self.param_dtype)
        return jnp.expand_dims(values.astype(x.dtype), tuple(range(x.ndim - 1)))


class LayerNorm(RMSNorm):
    """The norm of x less its mean, plus a bias; see `RMSNorm`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., d] to [..., d]."""
        dtype = at_least_float32(x.dtype)
        wide = x.astype(dtype)
        mean = wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
        y = self.scaled(x.astype(dtype) - mean, variance)
        return (y + self.vector("bias", nn.initializers.zeros, y)).astype(self.dtype)


def rms_norm(config: LMConfig, name: str | None = None) -> RMSNorm:
    """The norm in front of a layer's parts.

    Examples:
        >>> y, _ = lm.rms_norm(small).init_with_output(jax.random.key(0), 3 * jnp.ones((2, 8)))
        >>> y.shape, round(float(y[0, 0]), 3)
        ((2, 8), 1.0)
    """
    c = config
    return RMSNorm(c.norm_epsilon, c.dtype, c.param_dtype, c.norm_offset, name=name)


def layer_norm(config: LMConfig, name: str | None = None) -> LayerNorm:
    """The norm of GPT-2 and GPT-NeoX.

    Examples:
        >>> y, _ = lm.layer_norm(small).init_with_output(jax.random.key(0), jnp.ones((2, 8)))
        >>> y.tolist()[0]
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    c = config
    return LayerNorm(c.norm_epsilon, c.dtype, c.param_dtype, c.norm_offset, name=name)


def some_tokens_at_once(
    module: nn.Module,
    function: Callable[[nn.Module, jax.Array], jax.Array],
    x: jax.Array,
    hidden: int,
) -> jax.Array:
    """Applies what treats tokens apart, to some after the others where all would take much memory.

    Args:
        module: whose parameters the function uses, and makes.
        function: `(module, [B, s, d]) -> [B, s, d]`.
        x: [B, S, d].
        hidden: size of what the function makes of a token.
    """
    batch_size, length = x.shape[:2]
    if is_symbolic(batch_size) or is_symbolic(length):
        return function(module, x)
    row = batch_size * hidden * x.dtype.itemsize
    size = max(_CHUNK_BYTES // row, _FEWEST_TOKENS)
    if row * length <= _LARGEST_HIDDEN or length <= size:
        return function(module, x)

    def step(module: nn.Module, carry: None, chunk: jax.Array) -> tuple[None, jax.Array]:
        return carry, function(module, chunk)

    scan = nn.scan(nn.remat(step), variable_broadcast="params", split_rngs={"params": False})
    _, found = scan(module, None, split_tokens(x, size))
    return join_tokens(found, length)


def swiglu(
    config: LMConfig,
    hidden: int,
    x: jax.Array,
    *,
    activation: Activation = "silu",
    use_bias: bool = False,
) -> jax.Array:
    """The gated MLP of Llama, [B, S, d] to [B, S, d]; its parts are modules of the caller.

    Examples:
        >>> class MLP(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return lm.swiglu(small, 16, x)
        >>> MLP().init_with_output(jax.random.key(0), jnp.ones((1, 3, 8)))[0].shape  # [B, S, d]
        (1, 3, 8)
    """
    gate, up = (dense(config, hidden, name, use_bias=use_bias)(x) for name in ("gate", "up"))
    gated = _GATES[activation](gate, up)
    return dense(config, config.width, "down", use_bias=use_bias)(gated)


def layer_gelu(layer: Any, x: jax.Array, *, approximate: bool) -> jax.Array:
    """The MLP with GELU and biases of a layer [B, S, d]; large ones in parts."""

    def mlp(layer: Any, x: jax.Array) -> jax.Array:
        c = layer.config
        y = dense(c, c.mlp_size, "up", use_bias=True)(x)
        return dense(c, c.width, "down", use_bias=True)(nn.gelu(y, approximate=approximate))

    return some_tokens_at_once(layer, mlp, x, layer.config.mlp_size)


def layer_swiglu(layer: Any, x: jax.Array, **options: Any) -> jax.Array:
    """`swiglu` of a layer [B, S, d], whose configuration has `mlp_size`; large ones in parts."""

    def mlp(layer: Any, x: jax.Array) -> jax.Array:
        return swiglu(layer.config, layer.config.mlp_size, x, **options)

    return some_tokens_at_once(layer, mlp, x, layer.config.mlp_size)


@jax.checkpoint
def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """The activation of `swiglu`; to compute it again takes less time than to keep its parts."""
    return nn.silu(gate) * up


@jax.checkpoint
def _gated_by_gelu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """The same with GELU as tanh approximates it."""
    return nn.gelu(gate, approximate=True) * up


_GATES = {"silu": _gated, "gelu_tanh": _gated_by_gelu}


def project_to_logits(
    hidden: jax.Array, head: jax.Array, softcap: float | None = None
) -> jax.Array:
    """Multiplies hidden states [..., d] by a head [d, V], and keeps the logits in float32 at least.

    The product is taken in the compute dtype; logits rounded to it would blur the loss.

    Examples:
        >>> hidden, head = jnp.ones((2, 8), jnp.bfloat16), jnp.ones((8, 10), jnp.bfloat16)
        >>> lm.project_to_logits(hidden, head).dtype
        dtype('float32')
    """
    dtype = at_least_float32(hidden.dtype)
    logits = jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=dtype)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


class LanguageModel(nn.Module):
    """The language model in three pieces: `embed`, the layers (`__call__`), `unembed`.

    The pieces let a memory stand in front of the embeddings, and another output projection behind
    the hidden states. A subclass names its `layer_class`, a module with `config` that maps
    `(x [B, S, d], inputs, state)` to `(x, state)`: `inputs` are the same for all layers, `state`
    is the layer's own.

    Attributes:
        config: the model.

    Examples:
        >>> net = lm.make_lm(small)
        >>> isinstance(net, lm.LanguageModel)
        True
        >>> variables = {"params": params["lm"]}
        >>> net.apply(variables, context_ids, method="embed").shape  # [B, S, d]
        (2, 5, 8)
    """

    config: Any
    layer_class: ClassVar[Any]

    def setup(self) -> None:
        """Declares the parameters."""
        c = self.config
        embedding_std = 1.0 if c.init == "fan_in" else c.init_std
        self.embedding = self.param(
            "embedding",
            nn.initializers.normal(embedding_std),
            (c.vocab_size, c.width),
            c.param_dtype,
        )
        layer = self.layer_type()
        if not c.keeps_all:
            layer = nn.remat(layer, policy=_REMAT_POLICIES[c.remat], prevent_cse=not c.scan_layers)
        if c.scan_layers:
            self.layers = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(self.input_axes(), 0),
                length=c.num_layers,
            )(c)
        else:
            self.layers = [layer(c) for _ in range(c.num_layers)]
        self.final_norm = self.make_final_norm()
        if not c.tied_head:
            self.head = self.param("head", kernel_init(c), (c.width, c.vocab_size), c.param_dtype)

    def layer_type(self) -> Any:
        """The class of the layers."""
        return self.layer_class

    def make_final_norm(self) -> nn.Module:
        """The norm behind the last layer."""
        return rms_norm(self.config)

    def input_axes(self) -> Any:
        """Which axes of `inputs` go over layers, as `nn.scan` wants to know it: none."""
        return nn.broadcast

    def inputs_of_layer(self, inputs: PyTree, i: int) -> PyTree:
        """The part of `inputs` that layer i gets: all of them."""
        del i
        return inputs

    def embed(self, ids: jax.Array) -> jax.Array:
        """Looks up token embeddings: int [B, S] to [B, S, d] in the compute dtype."""
        return jnp.asarray(self.embedding)[ids].astype(self.config.dtype)

    def run_layers(self, x: jax.Array, inputs: PyTree, state: PyTree) -> tuple[jax.Array, PyTree]:
        """Runs all layers and the final norm.

        Args:
            x: [B, S, d].
            inputs: what every layer gets, see `inputs_of_layer`.
            state: states of the layers, leaves [L, ...], or None.

        Returns:
            Final hidden states [B, S, d], ready for an output projection, and the new states.
        """
        x = x.astype(self.config.dtype)
        if self.config.scan_layers:
            x, state = self.layers(x, inputs, state)
        else:
            states = []
            for i, layer in enumerate(self.layers):
                own = jax.tree.map(lambda leaf, i=i: leaf[i], state)
                x, new = layer(x, self.inputs_of_layer(inputs, i), own)
                states.append(new)
            state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return self.final_norm(x), state

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Projects hidden states [B, S, d] to logits [B, S, V], float32 at least."""
        return project_to_logits(hidden, self.head_kernel(), self.config.logit_softcap)

    def head_kernel(self) -> jax.Array:
        """Returns the LM head [d, V]."""
        return self.embedding.T if self.config.tied_head else self.head

    def everything(self, ids: jax.Array) -> jax.Array:
        """Logits [B, S, V] of token ids [B, S]: the plain language model."""
        return self.unembed(self(self.embed(ids))[0])
