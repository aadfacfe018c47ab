"""GradMem in JAX: memory written by gradient descent at test time."""

from gradmem_jax.config import GPT2Config, GPTNeoXConfig, GradMemConfig, LlamaConfig, RopeScaling
from gradmem_jax.generate import generate
from gradmem_jax.lm.associative import AssociativeConfig
from gradmem_jax.lm.lact import LaCTConfig
from gradmem_jax.lm.mamba import MambaConfig
from gradmem_jax.lm.mamba2 import Mamba2Config
from gradmem_jax.lm.pretrained import Pretrained, load_config, load_pretrained, save_pretrained
from gradmem_jax.lm.ttt_linear import TTTLinearConfig
from gradmem_jax.memory.full_context import ContextMemory, FullContext, FullContextConfig
from gradmem_jax.memory.gradient import GradMem, ProjectedMemory
from gradmem_jax.memory.inner_loop import WriteInfo
from gradmem_jax.memory.interface import MemoryModel, kv_cache_floats, memory_floats
from gradmem_jax.memory.kv_prefix import KVMemory, KVPrefix, KVPrefixConfig
from gradmem_jax.memory.layer_memory import ARMTConfig, LayerMemory, LayerMemoryConfig
from gradmem_jax.memory.recurrent import RMT, RMTConfig
from gradmem_jax.memory.segments import write_context
from gradmem_jax.memory.state_space import StateMemory, StateSpace, StateSpaceConfig
from gradmem_jax.memory.warm_start import WarmStart, WarmStartConfig
from gradmem_jax.memory_file import load_memory, save_memory
from gradmem_jax.params_file import load_params, save_params
from gradmem_jax.reconstruction import Reconstruction, reconstruct

__version__ = "0.1.0"

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
    "generate",
    "kv_cache_floats",
    "load_config",
    "load_memory",
    "load_params",
    "load_pretrained",
    "memory_floats",
    "reconstruct",
    "save_memory",
    "save_params",
    "save_pretrained",
    "write_context",
]
