"""GradMem in JAX: memory written by gradient descent at test time."""

import importlib
from typing import TYPE_CHECKING, Any

from gradmem_jax.lm.armt import AssociativeConfig
from gradmem_jax.lm.causal_attention import attention
from gradmem_jax.lm.families import register_lm
from gradmem_jax.lm.gpt2 import GPT2Config
from gradmem_jax.lm.gpt_neox import GPTNeoXConfig
from gradmem_jax.lm.lact import LaCTConfig
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.mamba import MambaConfig
from gradmem_jax.lm.mamba2 import Mamba2Config
from gradmem_jax.lm.rotary import RopeScaling
from gradmem_jax.lm.ttt_linear import TTTLinearConfig
from gradmem_jax.memory.full_context import ContextMemory, FullContext, FullContextConfig
from gradmem_jax.memory.generate import generate
from gradmem_jax.memory.gradmem import GradMem, GradMemConfig, ProjectedMemory, WritePrediction
from gradmem_jax.memory.inner_loop import WriteInfo
from gradmem_jax.memory.interface import MemoryModel, kv_cache_floats, memory_floats
from gradmem_jax.memory.kv_prefix import KVMemory, KVPrefix, KVPrefixConfig
from gradmem_jax.memory.layer_memory import ARMTConfig, LayerMemory, LayerMemoryConfig
from gradmem_jax.memory.reconstruction import Reconstruction, reconstruct
from gradmem_jax.memory.recurrent_state import StateMemory, StateSpace, StateSpaceConfig
from gradmem_jax.memory.rmt import RMT, RMTConfig
from gradmem_jax.memory.segments import write_context
from gradmem_jax.memory.warm_start import WarmStart, WarmStartConfig
from gradmem_jax.trees import Params

if TYPE_CHECKING:
    from gradmem_jax.lm.pretrained.load import (
        Pretrained,
        load_config,
        load_pretrained,
        save_pretrained,
    )
    from gradmem_jax.storage.memory_file import load_memory, save_memory
    from gradmem_jax.storage.params_file import load_params, save_params

__version__ = "0.1.0"

# What reads and writes files takes as long to import as all the rest: only when it is asked for.
_OF_FILES = {
    "Pretrained": "lm.pretrained.load",
    "load_config": "lm.pretrained.load",
    "load_memory": "storage.memory_file",
    "load_params": "storage.params_file",
    "load_pretrained": "lm.pretrained.load",
    "save_memory": "storage.memory_file",
    "save_params": "storage.params_file",
    "save_pretrained": "lm.pretrained.load",
}

__all__ = [
    "ARMTConfig",
    "AssociativeConfig",
    "ContextMemory",
    "FullContext",
    "FullContextConfig",
    "GPT2Config",
    "GPTNeoXConfig",
    "GradMem",
    "GradMemConfig",
    "KVMemory",
    "KVPrefix",
    "KVPrefixConfig",
    "LaCTConfig",
    "LayerMemory",
    "LayerMemoryConfig",
    "LlamaConfig",
    "Mamba2Config",
    "MambaConfig",
    "MemoryModel",
    "Params",
    "Pretrained",
    "ProjectedMemory",
    "RMT",
    "RMTConfig",
    "Reconstruction",
    "RopeScaling",
    "StateMemory",
    "StateSpace",
    "StateSpaceConfig",
    "TTTLinearConfig",
    "WarmStart",
    "WarmStartConfig",
    "WriteInfo",
    "WritePrediction",
    "attention",
    "generate",
    "kv_cache_floats",
    "load_config",
    "load_memory",
    "load_params",
    "load_pretrained",
    "memory_floats",
    "reconstruct",
    "register_lm",
    "save_memory",
    "save_params",
    "save_pretrained",
    "write_context",
]


if not TYPE_CHECKING:  # type checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Imports what reads or writes files."""
        if name not in _OF_FILES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_OF_FILES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """All names, those not imported yet among them."""
    return sorted({*globals(), *__all__})
