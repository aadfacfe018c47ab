"""Which language model belongs to which configuration."""

import dataclasses
from typing import Any

from flax import linen as nn

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
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.layer_memory_lm import LayerMemoryLM
from gradmem_jax.lm.llama import Llama, LlamaConfig
from gradmem_jax.lm.mamba import Mamba, MambaConfig
from gradmem_jax.lm.mamba2 import Mamba2, Mamba2Config
from gradmem_jax.lm.recurrent_lm import RecurrentLM
from gradmem_jax.lm.transformer import Transformer
from gradmem_jax.lm.ttt_linear import TTTLinear, TTTLinearConfig
from gradmem_jax.lm.without_cache import WithoutCache

# What a language model must be, by what its configuration says that it keeps.
_BASES: dict[str, type[nn.Module]] = {
    "keys and values": Transformer,
    "a state": RecurrentLM,
    "associations": LayerMemoryLM,
    "fast weights": LayerMemoryLM,
    "nothing": nn.Module,
}
_PIECES = ("embed", "__call__", "unembed", "head_kernel")
_FAMILIES: dict[type[LMConfig], type[nn.Module]] = {}


def register_lm(config_class: type[LMConfig], lm_class: Any = None) -> Any:
    """Says which language model belongs to a configuration, and to subclasses of it.

    A configuration has the language model of its nearest registered base. With one argument it is
    a decorator of the language model.

    Args:
        config_class: a frozen dataclass, a subclass of `LMConfig`. Its `keeps` says what the
            language model keeps of the tokens it has read: "keys and values" (a `Transformer`),
            "a state" (a `RecurrentLM`) or "nothing" (any Flax module with the methods `embed`,
            `__call__`, `unembed`, `head_kernel`).
        lm_class: a Flax module whose one field is `config`.

    Returns:
        `lm_class`, or a decorator.

    Raises:
        ValueError: one of the classes is not of this kind, or the configuration has a language
            model already.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class DeepConfig(lm.LlamaConfig):
        ...     num_layers: int = 12
        >>> @gradmem_jax.register_lm(DeepConfig)
        ... class DeepLM(lm.Llama):
        ...     config: DeepConfig
        >>> type(lm.make_lm(DeepConfig(vocab_size=10))).__name__
        'DeepLM'
    """
    if lm_class is None:
        return lambda lm_class: register_lm(config_class, lm_class)
    _check(config_class, lm_class)
    known = _FAMILIES.setdefault(config_class, lm_class)
    require(
        known is lm_class,
        f"{config_class.__name__} has the language model {known.__name__} already; register before "
        "the first use, or derive a configuration of its own for the other one.",
    )
    return lm_class


def _check(config_class: Any, lm_class: Any) -> None:
    """Refuses what is no configuration, or no language model of it."""
    is_config = isinstance(config_class, type) and issubclass(config_class, LMConfig)
    require(
        is_config and "__dataclass_params__" in vars(config_class),
        f"config_class={config_class!r} must be a subclass of LMConfig that is a dataclass itself: "
        "@dataclasses.dataclass(frozen=True).",
    )
    keeps, name = config_class.keeps, config_class.__name__
    require(keeps in _BASES, f"{name}.keeps={keeps!r} is not known; choose one of {(*_BASES,)}.")
    base = _BASES[keeps]
    hint = "" if base is nn.Module else ' Say keeps = "nothing" of one that keeps no such thing.'
    require(
        isinstance(lm_class, type) and issubclass(lm_class, base),
        f"lm_class={lm_class!r} must be a subclass of {base.__name__}, as {name}.keeps={keeps!r} "
        f"says.{hint}",
    )
    names = {name for base in lm_class.__mro__ for name in vars(base)}
    missing = [piece for piece in _PIECES if piece not in names]
    require(not missing, f"{lm_class.__name__} has no method {', '.join(missing)}.")
    fields = [field.name for field in dataclasses.fields(lm_class) if field.init]
    require(
        fields[:1] == ["config"],
        f"{lm_class.__name__} has the fields {fields}; the first must be config, a {name}.",
    )


def make_lm(config: LMConfig) -> Any:
    """Returns the language model of a configuration, a Flax module without parameters.

    Raises:
        ValueError: neither the configuration's class nor a base of it has a language model.

    Examples:
        >>> net = lm.make_lm(small)
        >>> type(net).__name__, net.config == small
        ('Llama', True)
    """
    bases = [base for base in type(config).__mro__ if base in _FAMILIES]
    require(
        bases != [],
        f"lm={type(config).__name__} has no language model; it must be one of "
        f"{', '.join(known.__name__ for known in _FAMILIES)}, or registered by "
        "gradmem_jax.register_lm. docs/own_models.md says how to add one.",
    )
    # From here on it is this one: what is compiled depends on it.
    lm_class = _FAMILIES.setdefault(type(config), _FAMILIES[bases[0]])
    lm = lm_class(config)
    return WithoutCache(lm) if config.keeps == "nothing" else lm


for _pair in (
    (LlamaConfig, Llama),
    (GPT2Config, GPT2),
    (GPTNeoXConfig, GPTNeoX),
    (MambaConfig, Mamba),
    (AssociativeConfig, AssociativeLlama),
    (AssociativeGPT2Config, AssociativeGPT2),
    (AssociativeGPTNeoXConfig, AssociativeGPTNeoX),
    (LaCTConfig, LaCT),
    (Mamba2Config, Mamba2),
    (TTTLinearConfig, TTTLinear),
):
    register_lm(*_pair)
