"""Which language model belongs to which configuration."""

from gradmem_jax.checks import require
from gradmem_jax.lm.armt import (
    AssociativeConfig,
    AssociativeGPT2,
    AssociativeGPT2Config,
    AssociativeGPTNeoX,
    AssociativeGPTNeoXConfig,
    AssociativeLlama,
)
from gradmem_jax.lm.gpt2 import GPT2, GPT2Config
from gradmem_jax.lm.gpt_neox import GPTNeoX, GPTNeoXConfig
from gradmem_jax.lm.lact import LaCT, LaCTConfig
from gradmem_jax.lm.language_model import LanguageModel, LMConfig
from gradmem_jax.lm.llama import Llama, LlamaConfig
from gradmem_jax.lm.mamba import Mamba, MambaConfig
from gradmem_jax.lm.mamba2 import Mamba2, Mamba2Config
from gradmem_jax.lm.ttt_linear import TTTLinear, TTTLinearConfig

_FAMILIES: dict[type[LMConfig], type[LanguageModel]] = {
    LlamaConfig: Llama,
    GPT2Config: GPT2,
    GPTNeoXConfig: GPTNeoX,
    MambaConfig: Mamba,
    AssociativeConfig: AssociativeLlama,
    AssociativeGPT2Config: AssociativeGPT2,
    AssociativeGPTNeoXConfig: AssociativeGPTNeoX,
    LaCTConfig: LaCT,
    Mamba2Config: Mamba2,
    TTTLinearConfig: TTTLinear,
}


def make_lm(config: LMConfig) -> LanguageModel:
    """Returns the language model of a configuration, a Flax module without parameters.

    Raises:
        ValueError: the configuration is of a class that has no language model.
    """
    require(
        type(config) in _FAMILIES,
        f"lm={type(config).__name__} has no language model; it must be one of "
        f"{', '.join(known.__name__ for known in _FAMILIES)}. docs/architecture.md says how to add "
        "one.",
    )
    return _FAMILIES[type(config)](config)
