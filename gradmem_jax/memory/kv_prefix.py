"""Keys and values in every layer in place of input vectors, written by gradient descent.

The paper's appendix J. All but what the memory is and how it enters the model is GradMem's.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import register_namedtuple_serialization

from gradmem_jax.array_checks import check_key
from gradmem_jax.checks import require
from gradmem_jax.lm.attention import make_cache
from gradmem_jax.lm.transformer import TransformerConfig
from gradmem_jax.memory.gradmem import GradMem, GradMemConfig
from gradmem_jax.memory.prefix import Prefix, copy_per_sample
from gradmem_jax.memory.programs import shared
from gradmem_jax.trees import Params


class KVMemory(NamedTuple):
    """What attention sees before the tokens.

    Attributes:
        keys: [B, L, m, Hkv, Dh], as they are compared, rotary embedding included.
        values: [B, L, m, Hkv, Dh].

    Examples:
        >>> model = gradmem_jax.KVPrefix(gradmem_jax.KVPrefixConfig(lm=small, num_memory_tokens=2))
        >>> params = jax.eval_shape(model.init, jax.random.key(0))  # shapes only
        >>> memory, _ = jax.eval_shape(model.write_memory, params, context_ids)
        >>> memory.keys.shape  # [B, L, m, Hkv, Dh]
        (2, 1, 2, 2, 4)
    """

    keys: jax.Array
    values: jax.Array


register_namedtuple_serialization(KVMemory, serialized_name="gradmem_jax.KVMemory")


@dataclasses.dataclass(frozen=True)
class KVPrefixConfig(GradMemConfig):
    """GradMem whose memory is a prefix of `num_memory_tokens` keys and values in every layer.

    A prefix of keys has no output of its own, so learned vectors (`num_control_tokens`, at least
    one) stand behind it and predict the first token.

    Examples:
        >>> config = gradmem_jax.KVPrefixConfig(lm=small, write_learning_rate=1.0)
        >>> config.num_control_tokens
        1
    """

    model_name: ClassVar[str] = "KVPrefix"
    takes_lm_without_cache: ClassVar[bool] = False

    lm: TransformerConfig
    num_control_tokens: int = 1
    memory_projection: Literal["none"] = "none"
    learned_write_learning_rate: Literal["none", "shared"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.num_control_tokens >= 1,
            "num_control_tokens must be at least 1: what stands behind the keys and values "
            "predicts the first token.",
        )

    @property
    def prefix_length(self) -> int:
        """Positions before the first context or query token."""
        return self.num_memory_tokens + self.num_control_tokens


@dataclasses.dataclass(frozen=True)
class KVPrefix(GradMem[KVMemory]):
    """GradMem over keys and values; see `GradMem`.

    Examples:
        >>> model = gradmem_jax.KVPrefix(gradmem_jax.KVPrefixConfig(lm=small, num_memory_tokens=2))
        >>> params = jax.jit(model.init)(jax.random.key(0))
        >>> memory, _ = model.write_memory(params, context_ids)
        >>> memory.values.shape  # [B, L, m, Hkv, Dh]
        (2, 1, 2, 2, 4)
    """

    config: KVPrefixConfig

    @property
    def control_names(self) -> tuple[str, ...]:
        """Names of the groups of control tokens: those behind the memory only."""
        return ("write_end", "read_end")

    @shared
    def init(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws all parameters: those of GradMem, "initial_memory" being {"keys", "values"}."""
        check_key(key)
        c = self.config
        shape = (c.lm.num_layers, c.num_memory_tokens, c.lm.kv_heads, c.lm.head_size)
        own_key, memory_key = jax.random.split(key)
        keys, values = c.memory_init_std * jax.random.normal(
            memory_key, (2, *shape), c.lm.param_dtype
        )
        return super().init(own_key, lm_params) | {
            "initial_memory": {"keys": keys, "values": values}
        }

    def initial_memory(self, params: Params, batch_size: int) -> KVMemory:
        """Returns a copy of M0 for each sample."""
        return copy_per_sample(KVMemory(**params["initial_memory"]), batch_size)

    def prefix(self, params: Params, memory: KVMemory, phase: str) -> Prefix:
        """The control tokens [B, c, d] behind the memory, and the memory as a cache."""
        keys, values = (x.astype(self.config.lm.dtype) for x in memory)
        lengths = jnp.full(keys.shape[0], self.config.num_memory_tokens, jnp.int32)
        control = self.control_tokens(params, f"{phase}_end", keys.shape[0])
        return Prefix(control, make_cache(keys, values, lengths, 0))
