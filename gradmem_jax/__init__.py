"""GradMem in JAX: memory written by gradient descent at test time."""

from gradmem_jax.config import GradMemConfig, LlamaConfig, RopeScaling
from gradmem_jax.generate import generate
from gradmem_jax.memory.full_context import ContextMemory, FullContext, FullContextConfig
from gradmem_jax.memory.gradient import GradMem, ProjectedMemory
from gradmem_jax.memory.inner_loop import WriteInfo
from gradmem_jax.memory.recurrent import RMT, RMTConfig

__version__ = "0.1.0"

__all__ = [
    "ContextMemory",
    "FullContext",
    "FullContextConfig",
    "GradMem",
    "GradMemConfig",
    "LlamaConfig",
    "ProjectedMemory",
    "RMT",
    "RMTConfig",
    "RopeScaling",
    "WriteInfo",
    "generate",
]
