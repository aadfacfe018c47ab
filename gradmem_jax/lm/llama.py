"""Llama and its relatives: RMSNorm, rotary positions, grouped-query attention, a gated MLP."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gradmem_jax.checks import is_symbolic, is_traced, require, require_integer, require_number
from gradmem_jax.lm.attention import AttentionState, PartialAttention
from gradmem_jax.lm.language_model import Activation, layer_swiglu, rms_norm
from gradmem_jax.lm.rotary import RopeScaling, rotary_frequencies, rotate
from gradmem_jax.lm.transformer import (
    AttentionInputs,
    Transformer,
    TransformerConfig,
    self_attention,
)

_NO_WINDOW = np.iinfo(np.int32).max
_OPTIONS = {"rotary_fraction", "no_rope_layers", "window", "attention_bias", "output_bias"}
_OPTIONS |= {"mlp_bias", "qk_norm", "query_scalar", "attention_softcap", "norms", "activation"}
_OPTIONS |= {"embedding_scale"}


@dataclasses.dataclass(frozen=True)
class LlamaConfig(TransformerConfig):
    """A Llama language model; the defaults are the model of the paper's KV retrieval runs.

    What Mistral, Qwen 2 and 3, Gemma 2 and 3, OLMo 2, SmolLM3 and Phi-3 do otherwise is a field.

    Attributes:
        num_kv_heads: key and value heads (grouped-query attention); None means `num_heads`.
        head_width: size of one head; None means `width // num_heads`.
        rope_base: base of the rotary frequencies.
        rope_scaling: optional stretching of the rotary frequencies.
        rotary_fraction: share of each head that is rotated, from its start.
        no_rope_layers: numbers of the layers, from 0, whose heads are not rotated.
        window: how many tokens attention sees, the newest one included; memory and control tokens
            count as tokens, so those far behind them do not see them. None is all of them. It
            goes by positions and takes them to have no gaps: those of no more tokens than this
            are not looked at.
        window_layers: numbers of the layers, from 0, with this window; none named means all layers.
        window_rope_base: `rope_base` of these layers, whose frequencies are not stretched; None
            has them be as the others.
        attention_bias: whether the projections to queries, keys and values have biases.
        output_bias: whether the projection behind attention has one.
        mlp_bias: whether those of the MLP have biases.
        qk_norm: norms of queries and keys: of each "head", or of "all" heads together.
        query_scalar: scores are divided by its root; None means the width of a head.
        attention_softcap: c of scores that become `c * tanh(score / c)`; None leaves them.
        norms: whether those of attention and MLP stand "before" them, "after" them, or "both".
        activation: of the MLP's gate; "gelu_tanh" is GELU as tanh approximates it.
        embedding_scale: what the embeddings of tokens are multiplied by; those of the memory are
            not.

    Examples:
        >>> config = gradmem_jax.LlamaConfig(
        ...     vocab_size=32000, width=64, num_heads=4, num_kv_heads=2, window=256
        ... )
        >>> dataclasses.replace(config, dtype="bfloat16").num_kv_heads
        2
    """

    num_kv_heads: int | None = None
    head_width: int | None = None
    rope_base: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    rotary_fraction: float = 1.0
    no_rope_layers: tuple[int, ...] = ()
    window: int | None = None
    window_layers: tuple[int, ...] = ()
    window_rope_base: float | None = None
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "all"] = "none"
    query_scalar: float | None = None
    attention_softcap: float | None = None
    norms: Literal["before", "after", "both"] = "before"
    activation: Activation = "silu"
    embedding_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_kv_heads", "head_width", "window"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), 1)
        require(
            self.num_heads % self.kv_heads == 0,
            f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.kv_heads}.",
        )
        require(
            self.head_size % 2 == 0,
            f"head_width={self.head_size} must be even: rotary embedding turns pairs.",
        )
        for name in ("rope_base", "embedding_scale", "rotary_fraction"):
            require_number(name, getattr(self, name), above=0)
        for name in ("window_rope_base", "query_scalar", "attention_softcap"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name), above=0)
        require(
            self.rotary_fraction <= 1 and self.rotary_width > 0 and self.rotary_width % 2 == 0,
            f"rotary_fraction={self.rotary_fraction} rotates {self.rotary_width} of the "
            f"{self.head_size} components of a head; it must be an even number of them.",
        )
        if self.rope_scaling is not None:
            self.rope_scaling.check_width(self.rotary_width)
        for name in ("window_layers", "no_rope_layers"):
            wrong = [i for i in getattr(self, name) if not 0 <= i < self.num_layers]
            require(
                not wrong,
                f"{name} has {wrong[:3]}; the {self.num_layers} layers are numbered from 0.",
            )
        for name in ("window_layers", "window_rope_base"):
            require(
                self.window is not None or not getattr(self, name),
                f"{name}={getattr(self, name)} needs a window: set window.",
            )

    @property
    def has_own_head_width(self) -> bool:
        """Whether heads may have another width than their share of the model's."""
        return self.head_width is not None

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads if self.head_width is None else self.head_width

    @property
    def rotary_width(self) -> int:
        """Components of a head that are rotated."""
        return int(self.head_size * self.rotary_fraction)

    @property
    def layers_with_window(self) -> tuple[bool, ...]:
        """Of each layer, whether it has a window."""
        named = self.window_layers or range(self.num_layers)
        return tuple(self.window is not None and i in named for i in range(self.num_layers))

    @property
    def layers_are_alike(self) -> bool:
        """Whether all layers see equally far and turn by equal angles, whatever the length."""
        scaling = self.rope_scaling
        return (
            len({*self.window_layers}) in (0, self.num_layers)
            and self.window_rope_base is None
            and not self.no_rope_layers
            and (scaling is None or not scaling.depends_on_length)
        )

    def has_param(self, path: str) -> bool:
        """Whether the model has a parameter; see `LMConfig.has_param`."""
        has = {
            "layers/attention/query/bias": self.attention_bias,
            "layers/attention/key/bias": self.attention_bias,
            "layers/attention/value/bias": self.attention_bias,
            "layers/attention/output/bias": self.output_bias,
            "layers/gate/bias": self.mlp_bias,
            "layers/up/bias": self.mlp_bias,
            "layers/down/bias": self.mlp_bias,
            "layers/attention/query_norm/scale": self.qk_norm != "none",
            "layers/attention/key_norm/scale": self.qk_norm != "none",
            "layers/attention_norm/scale": self.norms != "after",
            "layers/mlp_norm/scale": self.norms != "after",
            "layers/attention_output_norm/scale": self.norms != "before",
            "layers/mlp_output_norm/scale": self.norms != "before",
        }
        return has.get(path, super().has_param(path))


def require_plain_llama(config: LlamaConfig) -> None:
    """Raises ValueError if a model made of Llama's parts asks for one that it does not have."""
    own = [field for field in dataclasses.fields(LlamaConfig) if field.name in _OPTIONS]
    asked = [field.name for field in own if getattr(config, field.name) != field.default]
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind not in ("linear", "llama3"):
        asked.append(f"rope_scaling.kind={scaling.kind!r}")
    require(not asked, f"{type(config).__name__} has no {', '.join(asked)}; leave the default.")


class LayerKind(NamedTuple):
    """How one layer differs from others, or with an axis [L] in front how each of them does.

    Attributes:
        window: how many tokens attention sees; int32, or None for all of them.
        frequencies: [Dr / 2] or [B or 1, 1, Dr / 2], angle per position of each rotated pair.
        turned_scale: what rotated components are multiplied by.
    """

    window: Any
    frequencies: Any
    turned_scale: Any


def layer_kind(config: LlamaConfig) -> LayerKind:
    """The kind of all layers of a model whose layers are alike."""
    c = config
    frequencies = rotary_frequencies(c.rotary_width, c.rope_base, c.rope_scaling)
    return LayerKind(c.window, frequencies, c.rope_scaling.turned_scale if c.rope_scaling else 1.0)


def layer_kinds(config: LlamaConfig, positions: jax.Array) -> LayerKind:
    """The kind of each layer: leaves [L, ...].

    Args:
        config: the model.
        positions: int [S] or [B, S], of the tokens of a call.
    """
    c, scaling = config, config.rope_scaling
    length = None
    if scaling is not None and scaling.depends_on_length:
        length = jnp.atleast_2d(positions).max(axis=-1) + 1
    usual = rotary_frequencies(c.rotary_width, c.rope_base, scaling, length)
    base = c.window_rope_base
    near = usual if base is None else rotary_frequencies(c.rotary_width, base)
    still = np.zeros(c.rotary_width // 2)
    rows = [x if x.ndim == 3 else x[None, None] for x in (usual, near, still)]
    xnp = np if length is None else jnp
    rows = [xnp.asarray(x, jnp.result_type(float)) for x in rows]
    windows = np.array(c.layers_with_window)
    chosen = np.where(windows, 1, 0)
    chosen[list(c.no_rope_layers)] = 2
    scale = 1.0 if scaling is None else scaling.turned_scale
    scales = np.array([scale, scale if base is None else 1.0, 1.0])
    window = None if c.window is None else np.where(windows, c.window, _NO_WINDOW).astype(np.int32)
    return LayerKind(window, xnp.stack(xnp.broadcast_arrays(*rows))[chosen], scales[chosen])


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: AttentionInputs, state: AttentionState
    ) -> tuple[jax.Array, AttentionState]:
        """Maps x [B, S, d] to [B, S, d]; see `self_attention`."""
        c = self.config
        kind = layer_kind(c) if inputs.layer is None else inputs.layer

        def before_rotary(name: str, x: jax.Array) -> jax.Array:
            if c.qk_norm != "none":
                joined = x if c.qk_norm == "head" else x.reshape(*x.shape[:2], -1)
                x = rms_norm(c, f"{name}_norm")(joined).reshape(x.shape)
            if name == "query" and c.query_scalar is not None:
                x = x * (c.head_size / c.query_scalar) ** 0.5
            return x

        def rotary(x: jax.Array, positions: jax.Array) -> jax.Array:
            return rotate(x, positions, kind.frequencies, kind.turned_scale)

        def mask(query: jax.Array, key: jax.Array) -> jax.Array:
            return query - key < jnp.asarray(kind.window, query.dtype)

        return self_attention(
            c,
            x,
            inputs,
            state,
            rotary=rotary,
            before_rotary=before_rotary,
            use_bias=c.attention_bias,
            output_bias=c.output_bias,
            mask=mask if _hides(kind.window, _reach(inputs)) else None,
            softcap=c.attention_softcap,
        )


def _reach(inputs: AttentionInputs) -> Any:
    """How many tokens the last one could see if there were no window."""
    cached = 0 if inputs.cache_mask is None else inputs.cache_mask.shape[-1]
    return inputs.positions.shape[-1] + cached


def _hides(window: Any, reach: Any) -> bool:
    """Whether a window may hide any of so many tokens, whose positions have no gaps."""
    return window is not None and (is_traced(window) or is_symbolic(reach) or reach > window)


class Block(nn.Module):
    """One layer: attention and MLP with their norms, each added to the residual stream.

    Examples:
        >>> class Layers(lm.Llama):
        ...     layer_class = lm.Block  # or a subclass of it
        >>> Layers(small).layer_class.__name__
        'Block'
    """

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: AttentionInputs, state: AttentionState
    ) -> tuple[jax.Array, AttentionState]:
        """Maps x [B, S, d] to [B, S, d]."""
        c = self.config

        def norm(name: str, x: jax.Array) -> jax.Array:
            return rms_norm(c, name)(x) if c.has_param(f"layers/{name}/scale") else x

        y, new = Attention(c, name="attention")(norm("attention_norm", x), inputs, state)
        x = x + norm("attention_output_norm", y)
        y = norm("mlp_norm", x)
        y = layer_swiglu(self, y, activation=c.activation, use_bias=c.mlp_bias)
        return x + norm("mlp_output_norm", y), new


class Llama(Transformer):
    """A Llama; see `Transformer`.

    Examples:
        >>> net = lm.Llama(small)
        >>> variables = {"params": params["lm"]}
        >>> x = net.apply(variables, context_ids, method="embed")  # [B, S, d]
        >>> hidden, _ = net.apply(variables, x)
        >>> net.apply(variables, hidden, method="unembed").shape  # [B, S, V]
        (2, 5, 10)
    """

    config: LlamaConfig
    attends_apart: ClassVar[bool] = True
    layer_class = Block

    def embed(self, ids: jax.Array) -> jax.Array:
        """Looks up token embeddings: int [B, S] to [B, S, d] in the compute dtype."""
        scale, found = self.config.embedding_scale, super().embed(ids)
        return found if scale == 1 else found * jnp.asarray(scale, found.dtype)

    def prepare(self, inputs: AttentionInputs) -> AttentionInputs:
        """Adds the kind of each layer, where they differ."""
        if self.config.layers_are_alike:
            return inputs
        kinds = layer_kinds(self.config, inputs.positions)
        if not _hides(self.config.window, _reach(inputs)):
            kinds = kinds._replace(window=None)
        return inputs._replace(layer=kinds)

    def input_axes(self) -> Any:
        """The kinds of layers go over layers; see `LanguageModel`."""
        if self.config.layers_are_alike:
            return super().input_axes()
        axes: tuple[Any, ...] = (nn.broadcast, nn.broadcast, nn.broadcast, 0)
        return AttentionInputs(*axes)

    def inputs_of_layer(self, inputs: Any, i: int) -> Any:
        """The inputs with the kind of layer i."""
        if self.config.layers_are_alike:
            return inputs
        return inputs._replace(layer=jax.tree.map(lambda leaf: leaf[i], inputs.layer))

    def first_layer_attention(
        self, embeddings: jax.Array, num_before: int
    ) -> PartialAttention | None:
        """See `Transformer`; None too where a window or a soft cap comes between."""
        c, reach = self.config, num_before + embeddings.shape[1]
        if c.attention_softcap is not None or _hides(c.window, reach):
            return None
        return super().first_layer_attention(embeddings, num_before)
