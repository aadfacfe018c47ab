"""Language models, and the building blocks of one's own: docs/own_models.md."""

from gradmem_jax.lm.attention import (
    AttentionState,
    ByPosition,
    KVCache,
    PartialAttention,
    PositionFn,
    append_to_cache,
    attend,
)
from gradmem_jax.lm.families import make_lm, register_lm
from gradmem_jax.lm.gpt2 import GPT2, GPT2Config
from gradmem_jax.lm.gpt_neox import GPTNeoX, GPTNeoXConfig
from gradmem_jax.lm.language_model import (
    LanguageModel,
    LMConfig,
    dense,
    kernel_init,
    layer_norm,
    project_to_logits,
    rms_norm,
    swiglu,
)
from gradmem_jax.lm.llama import Block, Llama, LlamaConfig
from gradmem_jax.lm.recurrent_lm import RecurrentLM, causal_convolution, scan_chunks
from gradmem_jax.lm.rotary import RopeScaling, rotary_frequencies, rotate
from gradmem_jax.lm.transformer import (
    AttentionInputs,
    Transformer,
    TransformerConfig,
    self_attention,
)
from gradmem_jax.lm.without_cache import EmbeddingCache, WithoutCache

__all__ = [
    "AttentionInputs",
    "AttentionState",
    "Block",
    "ByPosition",
    "EmbeddingCache",
    "GPT2",
    "GPT2Config",
    "GPTNeoX",
    "GPTNeoXConfig",
    "KVCache",
    "LMConfig",
    "LanguageModel",
    "Llama",
    "LlamaConfig",
    "PartialAttention",
    "PositionFn",
    "RecurrentLM",
    "RopeScaling",
    "Transformer",
    "TransformerConfig",
    "WithoutCache",
    "append_to_cache",
    "attend",
    "causal_convolution",
    "dense",
    "kernel_init",
    "layer_norm",
    "make_lm",
    "project_to_logits",
    "register_lm",
    "rms_norm",
    "rotary_frequencies",
    "rotate",
    "scan_chunks",
    "self_attention",
    "swiglu",
]
