"""Causal language models whose tokens attend to all tokens before them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradmem_jax.checks import is_symbolic, require, require_integer
from gradmem_jax.lm.attention import (
    AttentionState,
    ByPosition,
    KVCache,
    PartialAttention,
    PositionFn,
    ReturnPartial,
    append_to_cache,
    attend,
    attend_all,
    merge_partial,
)
from gradmem_jax.lm.language_model import LanguageModel, LMConfig, dense
from gradmem_jax.parallel.sharding import gather_layer


@dataclasses.dataclass(frozen=True)
class TransformerConfig(LMConfig):
    """What every language model with attention over all tokens has.

    Attributes:
        num_heads: H, query heads.
        mlp_width: hidden size of the MLP; None means `4 * width`.
        attention: how that of many tokens to themselves is computed: "auto" takes blocks of queries
            and keys, linear in memory through a second derivative; JAX refuses forward mode through
            it unless a gradient was taken first. "xla" goes through queries only, in any mode.
            "pallas" takes fused kernels on TPU and GPU, and else blocks, in any mode.
        gather: where parameters are split over devices (`mesh.fsdp`), "step" gathers all of them
            once a training step; "layer" has each layer gather its own when it runs, in the compute
            dtype: far less memory, but they are sent for every pass.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class WindowConfig(lm.TransformerConfig):
        ...     window: int = 16
        >>> WindowConfig(vocab_size=10, width=8, num_heads=2).mlp_size  # 4 * width
        32
    """

    not_in_read: ClassVar[tuple[str, ...]] = (*LMConfig.not_in_read, "attention", "gather")

    num_heads: int = 4
    mlp_width: int | None = None
    attention: Literal["auto", "xla", "pallas"] = "auto"
    gather: Literal["step", "layer"] = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("num_heads", self.num_heads, 1)
        if self.mlp_width is not None:
            require_integer("mlp_width", self.mlp_width, 1)
        require(
            self.head_size * self.num_heads == self.width or self.has_own_head_width,
            f"width={self.width} is not a multiple of num_heads={self.num_heads}; "
            "change one of them or set head_width.",
        )

    @property
    def has_own_head_width(self) -> bool:
        """Whether heads may have another width than their share of the model's."""
        return False

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Hidden width of the MLP."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width


class AttentionInputs(NamedTuple):
    """Where the tokens of a sequence stand.

    Attributes:
        positions: int [S] or [B, S].
        mask: bool, broadcastable to [B, 1, S, S], true where a query sees a key; None is causal.
        cache_mask: bool [B, 1, S, E], true where a query sees one of the first E slots of a cache.
        layer: what a language model adds for its layers, see `Transformer.prepare`.

    Examples:
        >>> inputs = lm.AttentionInputs(positions=jnp.arange(5), mask=None, cache_mask=None)
        >>> inputs.positions.shape  # [S]
        (5,)
    """

    positions: jax.Array
    mask: jax.Array | None = None
    cache_mask: jax.Array | None = None
    layer: Any = None


def attention_inputs(
    length: int,
    cache: KVCache | None,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> AttentionInputs:
    """Positions, by default those that go on from the cache or from 0, and masks."""
    slots = jnp.arange(length)[None]
    if cache is None:
        return AttentionInputs(slots if positions is None else positions, mask)
    slots = slots + cache.length[:, None]
    num_earlier = cache.keys.shape[3] - length  # the new tokens need the other slots
    cache_mask = jnp.arange(num_earlier)[None] < cache.length[:, None]
    shape = (cache_mask.shape[0], 1, length, num_earlier)
    cache_mask = jnp.broadcast_to(cache_mask[:, None, None, :], shape)
    return AttentionInputs(slots if positions is None else positions, mask, cache_mask)


def _not_rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
    del positions
    return x


def self_attention(
    config: TransformerConfig,
    x: jax.Array,
    inputs: AttentionInputs,
    state: AttentionState,
    *,
    rotary: Callable[[jax.Array, jax.Array], jax.Array] = _not_rotated,
    before_rotary: Callable[[str, jax.Array], jax.Array] | None = None,
    use_bias: bool = False,
    output_bias: bool | None = None,
    mask: PositionFn | None = None,
    bias: PositionFn | None = None,
    softcap: float | None = None,
) -> tuple[jax.Array, AttentionState]:
    """Causal self-attention, [B, S, d] to [B, S, d]; its parts are modules of the caller.

    `mask` and `bias` are functions of positions, so they hold in WRITE, READ and decoding alike,
    with a cache and without. A window of w tokens is `lambda query, key: query - key < w`; the bias
    of ALiBi is `lambda query, key: -slopes[:, None, None] * (query - key)`, for slopes [H].

    Args:
        config: the model.
        x: [B, S, d].
        inputs: positions and masks.
        state: one of
            keys and values [B, Hkv, T, Dh] of earlier tokens;
            None: there are none, and nobody needs the new ones;
            `ReturnPartial`: there are none, and the attention of x to itself is asked for;
            `PartialAttention`: the causal attention of the last tokens of x to themselves.
        rotary: what positions [S] or [B, S] do to queries and keys [B, S, H, Dh].
        before_rotary: what is done before that, such as norms: `("query" or "key", [B, S, H, Dh])`.
        use_bias: whether the projections have biases.
        output_bias: whether the last one has; None is as the others.
        mask: keys that a query sees of those that are not behind it; see `ByPosition`.
        bias: what is added to scores; see `ByPosition`.
        softcap: see `attend`.

    Returns:
        [B, S, d]; and keys and values of the new tokens [B, S, Hkv, Dh], None, or the
        `PartialAttention` that was asked for.

    Raises:
        ValueError: a mask, a bias or a soft cap where a `PartialAttention` is asked for or given,
            or a mask or bias of a wrong dtype or shape.

    Examples:
        >>> class Layer(nn.Module):
        ...     config: lm.TransformerConfig
        ...
        ...     @nn.compact
        ...     def __call__(self, x, inputs, state):
        ...         y, new = lm.self_attention(self.config, x, inputs, state)
        ...         return x + y, new
        >>> x = jnp.ones((1, 3, 8))  # [B, S, d]
        >>> inputs = lm.AttentionInputs(jnp.arange(3), None, None)
        >>> (y, _), _ = Layer(small).init_with_output(jax.random.key(0), x, inputs, None)
        >>> y.shape
        (1, 3, 8)
    """
    c = config
    if isinstance(state, PartialAttention | ReturnPartial):
        given = {"mask": mask, "bias": bias, "softcap": softcap, "inputs.mask": inputs.mask}
        found = [name for name, value in given.items() if value is not None]
        require(
            not found,
            f"{' and '.join(found)} cannot be heeded where the first layer's attention is computed "
            "apart from the memory: take attends_apart = True out of the language model's class.",
        )
    heads = {"query": c.num_heads, "key": c.kv_heads, "value": c.kv_heads}
    num_new = x.shape[1] - (state.query.shape[1] if isinstance(state, PartialAttention) else 0)
    query, key, value = (
        dense(c, (number, c.head_size), name, use_bias=use_bias)(x[:, :num_new])
        for name, number in heads.items()
    )
    if before_rotary is not None:
        query, key = before_rotary("query", query), before_rotary("key", key)
    query, key = (rotary(x, inputs.positions[..., :num_new]) for x in (query, key))
    new: AttentionState = None
    if isinstance(state, PartialAttention):
        of_last = merge_partial(state, attend_all(state.query, key, value))
        y = jnp.concatenate([attend(query, key, value, method=c.attention).mean, of_last], axis=1)
    elif isinstance(state, ReturnPartial):
        new = attend(query, key, value, method=c.attention)
        y = new.mean
    else:
        places = None if mask is None and bias is None else ByPosition(inputs.positions, mask, bias)
        y = attend(
            query, key, value, inputs.mask, state, inputs.cache_mask, places, c.attention, softcap
        ).mean
        new = None if state is None else (key, value)
    y = y.astype(query.dtype)
    output_bias = use_bias if output_bias is None else output_bias
    return dense(c, c.width, "output", axis=(-2, -1), use_bias=output_bias)(y), new


class Transformer(LanguageModel):
    """A language model whose layers map `(x, inputs, state)` to `(x, new)`.

    `state` holds keys and values [B, Hkv, T, Dh] of earlier tokens and `new` those of x
    [B, S, Hkv, Dh], or both are None; for other states see `self_attention`.

    Attributes:
        attends_apart: whether WRITE may compute once what context tokens find among one another in
            the first layer, and join it with what they find in the memory. It may where
            `__call__` is this class's own and the layer's first use of x is a norm of each token
            and `self_attention` without mask and bias. A class says so for itself: subclasses do
            not inherit it.

    Examples:
        >>> class DeepLlama(lm.Transformer):
        ...     layer_class = lm.Block
        >>> DeepLlama(small).config.num_layers
        1
    """

    attends_apart: ClassVar[bool] = False

    config: TransformerConfig

    def layer_type(self) -> Any:
        """The class of the layers; it gathers their parameters if it has to."""
        if self.config.gather == "step" or self.is_initializing():
            return self.layer_class
        gather = functools.partial(
            gather_layer, width=self.config.width, dtype=jnp.dtype(self.config.dtype)
        )
        return nn.map_variables(self.layer_class, "params", trans_in_fn=gather)

    def __call__(
        self,
        embeddings: jax.Array,
        *,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: KVCache | None = None,
        partial_attention: PartialAttention | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the layers.

        Args:
            embeddings: [B, S, d].
            positions: int [S] or [B, S]; by default they go on from the cache, or from 0. With a
                cache only the default works. Where a window is, they must have no gaps.
            mask: bool, broadcastable to [B, 1, S, S], true where a query sees a key; causal by
                default.
            cache: keys and values of earlier tokens, with a capacity for S more.
            partial_attention: of the last of these tokens to themselves, from
                `first_layer_attention`, so that the first layer need not compute it. Positions,
                mask and cache must be the default.

        Returns:
            Final hidden states [B, S, d], ready for an output projection, and the grown cache.
        """
        inputs = self.prepare(attention_inputs(embeddings.shape[1], cache, positions, mask))
        embeddings = self.add_positions(embeddings, inputs.positions)
        if partial_attention is not None:
            first, *others = self.layers
            x = embeddings.astype(self.config.dtype)
            x, _ = first(x, self.inputs_of_layer(inputs, 0), partial_attention)
            for i, layer in enumerate(others, start=1):
                x, _ = layer(x, self.inputs_of_layer(inputs, i), None)
            return self.final_norm(x), None
        if cache is None:
            return self.run_layers(embeddings, inputs, None)[0], None
        hidden, new = self.run_layers(embeddings, inputs, (cache.keys, cache.values))
        require(
            new is not None,
            f"the layers of {type(self).__name__} return no keys and values to cache: have them "
            f'return those of self_attention, or say keeps = "nothing" in '
            f"{type(self.config).__name__}.",
        )
        return hidden, append_to_cache(cache, *new)

    def first_layer_attention(
        self, embeddings: jax.Array, num_before: int
    ) -> PartialAttention | None:
        """The first layer's attention of tokens to themselves, whatever stands before them.

        Args:
            embeddings: [B, S, d].
            num_before: how many positions are before them.

        Returns:
            What `__call__` takes for them as `partial_attention`. None if the class does not say
            `attends_apart`, if there is no token, or their number is left open by `jax.export`, or
            if `scan_layers` makes one program of all layers.
        """
        may, length = vars(type(self)).get("attends_apart", False), embeddings.shape[1]
        if not may or self.config.scan_layers or is_symbolic(length) or not length:
            return None
        inputs = self.prepare(AttentionInputs(num_before + jnp.arange(embeddings.shape[1])))
        inputs = self.inputs_of_layer(inputs, 0)
        embeddings = self.add_positions(embeddings, inputs.positions)
        return self.layers[0](embeddings.astype(self.config.dtype), inputs, ReturnPartial())[1]

    def prepare(self, inputs: AttentionInputs) -> AttentionInputs:
        """Adds what layers need to know beside positions and masks: nothing."""
        return inputs

    def empty_cache(self, batch_size: int, length: int) -> KVCache:
        """Returns a cache with a capacity of `length` tokens of each of `batch_size` samples."""
        c = self.config
        shape = (c.num_layers, batch_size, c.kv_heads, length, c.head_size)
        empty = jnp.zeros(shape, c.dtype)
        return KVCache(empty, empty, jnp.zeros(batch_size, jnp.int32))

    def add_positions(self, embeddings: jax.Array, positions: jax.Array) -> jax.Array:
        """Adds what the model says of positions [S] or [B, S] to embeddings [B, S, d]: nothing."""
        del positions
        return embeddings
