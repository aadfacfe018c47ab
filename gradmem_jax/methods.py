"""The ways of writing a memory that can be trained, by name."""

from typing import NamedTuple

from gradmem_jax.lm.armt import AssociativeConfig
from gradmem_jax.lm.lact import LaCTConfig
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.mamba import MambaConfig
from gradmem_jax.lm.mamba2 import Mamba2Config
from gradmem_jax.lm.transformer import TransformerConfig
from gradmem_jax.lm.ttt_linear import TTTLinearConfig
from gradmem_jax.memory.full_context import FullContext, FullContextConfig
from gradmem_jax.memory.gradmem import GradMem, GradMemConfig
from gradmem_jax.memory.interface import MemoryConfig, MemoryModel
from gradmem_jax.memory.kv_prefix import KVPrefix, KVPrefixConfig
from gradmem_jax.memory.layer_memory import ARMTConfig, LayerMemory, LayerMemoryConfig
from gradmem_jax.memory.recurrent_state import StateSpace, StateSpaceConfig
from gradmem_jax.memory.rmt import RMT, RMTConfig
from gradmem_jax.memory.warm_start import WarmStart, WarmStartConfig


class Method(NamedTuple):
    """A way of writing a memory.

    Attributes:
        model: its class.
        config: the class of the model's configuration.
        lm: the class of its language model's configuration, when it is trained from scratch.
        pretrained_lm: what the configuration of a pretrained language model must be.

    Examples:
        >>> from gradmem_jax.methods import Method
        >>> mine = Method(gradmem_jax.GradMem, gradmem_jax.GradMemConfig, lm=lm.GPT2Config)
        >>> mine.lm.__name__  # METHODS["mine"] = mine, and it can be trained by that name
        'GPT2Config'
    """

    model: type[MemoryModel]
    config: type[MemoryConfig]
    lm: type[LMConfig] = LlamaConfig
    pretrained_lm: type[LMConfig] = TransformerConfig


METHODS = {
    "gradmem": Method(GradMem, GradMemConfig),
    "warm_start": Method(WarmStart, WarmStartConfig),
    "kv_prefix": Method(KVPrefix, KVPrefixConfig),
    "rmt": Method(RMT, RMTConfig),
    "armt": Method(LayerMemory, ARMTConfig, AssociativeConfig),
    "mamba": Method(StateSpace, StateSpaceConfig, MambaConfig, MambaConfig),
    "mamba2": Method(StateSpace, StateSpaceConfig, Mamba2Config, Mamba2Config),
    "ttt_linear": Method(StateSpace, StateSpaceConfig, TTTLinearConfig, TTTLinearConfig),
    "lact": Method(LayerMemory, LayerMemoryConfig, LaCTConfig, LaCTConfig),
    "full_context": Method(FullContext, FullContextConfig),
}
"""The ways of writing by name; a line of your own adds one.

Examples:
    >>> from gradmem_jax.methods import METHODS
    >>> model_class, config_class = METHODS["rmt"][:2]
    >>> model_class(config_class(lm=small)).config.num_memory_tokens
    8
"""
BY_GRADIENT = tuple(n for n, method in METHODS.items() if issubclass(method.model, GradMem))
