"""The Transformer of ARMT: an associative memory in every layer (Rodkin et al. 2024).

Equations of section 2 of arXiv 2407.04841. With memory tokens m_i behind a segment, in every layer,

    k_i = phi(W_K m_i), v_i = W_V m_i, beta_i = sigmoid(W_beta m_i)
    vbar_i = A k_i / (z . k_i)                      what the memory holds for k_i already
    A <- A + sum_i beta_i (v_i - vbar_i) k_i^T      delta rule
    z <- z + sum_i gamma_i k_i,  gamma_i = 1 - z . k_i / |k_i|^2

and before the layer every token reads x + A q / (z . q) with q = phi(W_Q x). phi is DPFP-nu. As in
the authors' code gamma is clipped to [0, 1] and takes no gradient, all memory tokens of a segment
see the same old A and z, the denominators have 1e-5 added, and W_V starts at zero.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.export import register_namedtuple_serialization

from gradmem_jax.array_checks import check_params
from gradmem_jax.checks import require, require_integer
from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.lm.gpt2 import GPT2, GPT2Config, GPT2Layer
from gradmem_jax.lm.gpt_neox import GPTNeoX, GPTNeoXConfig, GPTNeoXLayer
from gradmem_jax.lm.language_model import dense
from gradmem_jax.lm.layer_memory_lm import LayerMemoryLM, Segment
from gradmem_jax.lm.llama import Block, Llama, LlamaConfig
from gradmem_jax.lm.transformer import TransformerConfig

_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class AssociativeFields(TransformerConfig):
    """What a Transformer with an associative memory in every layer has beside the Transformer's.

    Attributes:
        memory_width: d_mem, width of keys and queries before the feature map.
        feature_order: nu of the feature map DPFP-nu, which makes 2 * nu * d_mem features.
    """

    keeps: ClassVar[str] = "associations"

    memory_width: int = 64
    feature_order: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("memory_width", self.memory_width, 1)
        require_integer("feature_order", self.feature_order, 1)


@dataclasses.dataclass(frozen=True)
class AssociativeConfig(AssociativeFields, LlamaConfig):
    """A Llama with an associative memory in every layer.

    Examples:
        >>> config = gradmem_jax.AssociativeConfig(
        ...     vocab_size=10, width=8, num_layers=1, num_heads=2
        ... )
        >>> gradmem_jax.ARMTConfig(lm=config, num_memory_tokens=2).lm.num_heads
        2
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.layers_are_alike,
            "layers with an associative memory must be alike: no window_layers, window_rope_base, "
            "no_rope_layers, and no rope_scaling that depends on the length.",
        )


@dataclasses.dataclass(frozen=True)
class AssociativeGPT2Config(AssociativeFields, GPT2Config):
    """A GPT-2 with an associative memory in every layer."""


@dataclasses.dataclass(frozen=True)
class AssociativeGPTNeoXConfig(AssociativeFields, GPTNeoXConfig):
    """A GPT-NeoX with an associative memory in every layer."""


_BLOCKS: dict[type[AssociativeFields], Any] = {
    AssociativeConfig: Block,
    AssociativeGPT2Config: GPT2Layer,
    AssociativeGPTNeoXConfig: GPTNeoXLayer,
}


_MADE_OF: dict[type[TransformerConfig], type[AssociativeFields]] = {
    LlamaConfig: AssociativeConfig,
    GPT2Config: AssociativeGPT2Config,
    GPTNeoXConfig: AssociativeGPTNeoXConfig,
}


def associative_config(config: TransformerConfig) -> AssociativeFields:
    """Returns the same Transformer with an associative memory in every layer.

    Raises:
        ValueError: there is none for such a Transformer.
    """
    require(
        type(config) in _MADE_OF,
        f"a {type(config).__name__} cannot have an associative memory; only "
        f"{sorted(kind.__name__ for kind in _MADE_OF)} can.",
    )
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return _MADE_OF[type(config)](**fields)


class Associations(NamedTuple):
    """The memory of a layer.

    Attributes:
        matrix: [B, F, d], A.
        normalizer: [B, F], z.
    """

    matrix: jax.Array
    normalizer: jax.Array


register_namedtuple_serialization(Associations, serialized_name="gradmem_jax.Associations")


def dpfp(x: jax.Array, order: int) -> jax.Array:
    """Deterministic parameter-free projection (Schlag et al. 2021): [..., w] to [..., 2 * nu * w].

    Products of the rectified x and -x with themselves, shifted by 1 to nu positions.
    """
    x = jnp.concatenate([nn.relu(x), nn.relu(-x)], axis=-1)
    return jnp.concatenate([x * jnp.roll(x, j, axis=-1) for j in range(1, order + 1)], axis=-1)


def recall(memory: Associations, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values [B, S, d] that the memory holds for features [B, S, F], and z . features."""
    known = jnp.einsum("bf,bsf->bs", memory.normalizer, features)[..., None]
    return jnp.einsum("bfd,bsf->bsd", memory.matrix, features) / (known + _EPSILON), known


def associate(
    memory: Associations, keys: jax.Array, values: jax.Array, strength: jax.Array
) -> Associations:
    """Writes values [B, m, d] under keys [B, m, F] by the delta rule, `strength` is [B, m]."""
    held, known = recall(memory, keys)
    matrix = jnp.einsum("bmf,bmd,bm->bfd", keys, values - held, strength)
    squares = jnp.square(keys).sum(axis=-1, keepdims=True)
    new = jax.lax.stop_gradient(jnp.clip(1 - known / (squares + _EPSILON), 0, 1))
    return Associations(memory.matrix + matrix, memory.normalizer + (new * keys).sum(axis=1))


def adopt_transformer(params: Any, transformer: Any) -> Any:
    """Parameters of an associative Transformer with a plain one's in the place of its own.

    Raises:
        ValueError: the plain one is not the Transformer that the associative one is made of.
    """
    drawn = flatten_dict(params)
    inside = {path: path for path in drawn if not path[0].startswith("layers")}
    inside |= {(path[0], *path[2:]): path for path in drawn if path[1:2] == ("block",)}
    check_params(transformer, unflatten_dict({path: drawn[inside[path]] for path in inside}))
    adopted = {inside[path]: x for path, x in flatten_dict(transformer).items()}
    return unflatten_dict(drawn | adopted)


class AssociativeLayer(nn.Module):
    """A Transformer's layer that reads its associative memory first and is written to behind."""

    config: AssociativeFields

    @nn.compact
    def __call__(self, x: jax.Array, segment: Segment, state: Any) -> tuple[jax.Array, Any]:
        """Maps x [B, S, d] to [B, S, d]; see `LayerMemoryLM`."""
        c = self.config
        memory, cached = state
        dtype = at_least_float32(c.dtype)

        def features(name: str, x: jax.Array) -> jax.Array:
            return dpfp(dense(c, c.memory_width, name)(x).astype(dtype), c.feature_order)

        if memory is None:
            count = 2 * c.feature_order * c.memory_width
            memory = Associations(
                jnp.zeros((x.shape[0], count, c.width), dtype),
                jnp.zeros((x.shape[0], count), dtype),
            )
        x = x + recall(memory, features("memory_query", x))[0].astype(x.dtype)
        block = next(block for kind, block in _BLOCKS.items() if isinstance(c, kind))
        x, new = block(c, name="block")(x, segment.attention, cached)
        if segment.write:
            tokens = x[:, -segment.num_memory_tokens :]
            value = dense(c, c.width, "memory_value", kernel_init=nn.initializers.zeros)(tokens)
            strength = dense(c, 1, "memory_strength", use_bias=True)(tokens)[..., 0]
            memory = associate(
                memory,
                features("memory_key", tokens),
                value.astype(dtype),
                nn.sigmoid(strength.astype(dtype)),
            )
        return x, (memory, new)


class AssociativeLlama(LayerMemoryLM, Llama):
    """The language model of ARMT; see `LayerMemoryLM`."""

    config: AssociativeConfig
    layer_class: ClassVar[Any] = AssociativeLayer


class AssociativeGPT2(LayerMemoryLM, GPT2):
    """The same made of GPT-2, as in the paper's experiments with natural language."""

    config: AssociativeGPT2Config
    layer_class: ClassVar[Any] = AssociativeLayer


class AssociativeGPTNeoX(LayerMemoryLM, GPTNeoX):
    """The same made of GPT-NeoX."""

    config: AssociativeGPTNeoXConfig
    layer_class: ClassVar[Any] = AssociativeLayer
