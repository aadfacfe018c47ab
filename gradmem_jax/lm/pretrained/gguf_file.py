"""Llama models in GGUF files, whose weights may be quantised."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from gradmem_jax.checks import require, require_choice
from gradmem_jax.foreign_text import shown
from gradmem_jax.lm.attention import RopeScaling, rotary_frequencies
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.pretrained.tensor_layout import StoredModel, StoredTensor
from gradmem_jax.tokenizers.files import read_gguf_tokenizer
from gradmem_jax.tokenizers.gguf_reader import open_gguf_file
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer, wrap_file

_ROPE_FACTORS = "rope_freqs.weight"
# Rotary pairs are neighbours, "pt", in queries and keys; here they are halves, "tp".
_LAYOUT = {
    "token_embd.weight": ("embedding", "v d -> v d"),
    "blk.{}.attn_norm.weight": ("layers/attention_norm/scale", "d -> d"),
    "blk.{}.attn_q.weight": ("layers/attention/query/kernel", "hpt d -> d h tp"),
    "blk.{}.attn_k.weight": ("layers/attention/key/kernel", "gpt d -> d g tp"),
    "blk.{}.attn_v.weight": ("layers/attention/value/kernel", "gk d -> d g k"),
    "blk.{}.attn_output.weight": ("layers/attention/output/kernel", "d hk -> h k d"),
    "blk.{}.ffn_norm.weight": ("layers/mlp_norm/scale", "d -> d"),
    "blk.{}.ffn_gate.weight": ("layers/gate/kernel", "f d -> d f"),
    "blk.{}.ffn_up.weight": ("layers/up/kernel", "f d -> d f"),
    "blk.{}.ffn_down.weight": ("layers/down/kernel", "d f -> f d"),
    "output_norm.weight": ("final_norm/scale", "d -> d"),
    "output.weight": ("head", "v d -> d v"),
}


def open_gguf(path: pathlib.Path) -> StoredModel:
    """Opens a GGUF file; its tensors are dequantised as they are read.

    Raises:
        ValueError: the file is damaged, or the model is none that is known here.
    """
    file = open_gguf_file(path)
    fields = file.fields
    tensors = {
        name: StoredTensor(tensor.shape, functools.partial(file.read, name))
        for name, tensor in file.tensors.items()
    }
    rope_factors = tensors.pop(_ROPE_FACTORS, None)
    config = _read_config(fields, tensors, rope_factors)

    def read_tokenizer() -> TextTokenizer | None:
        if "tokenizer.ggml.tokens" not in fields:
            return None
        return wrap_file(read_gguf_tokenizer(fields, path))

    return StoredModel(config, _LAYOUT, tensors, read_tokenizer)


def _read_config(
    fields: dict[str, Any], tensors: dict[str, StoredTensor], rope_factors: StoredTensor | None
) -> LlamaConfig:
    kind = fields.get("general.architecture")
    require(kind == "llama", f"general.architecture={shown(kind)} is not supported, only 'llama'.")
    experts = fields.get("llama.expert_count", 0)
    require(experts == 0, f"llama.expert_count={shown(experts)}: experts are not supported.")
    keys = {
        "width": "embedding_length",
        "num_layers": "block_count",
        "num_heads": "attention.head_count",
        "mlp_width": "feed_forward_length",
        "max_positions": "context_length",
        "norm_epsilon": "attention.layer_norm_rms_epsilon",
    }
    missing = [f"llama.{key}" for key in keys.values() if f"llama.{key}" not in fields]
    missing += ["token_embd.weight"] if "token_embd.weight" not in tensors else []
    require(not missing, f"the GGUF file lacks {', '.join(missing)}.")

    def get(key: str, absent: Any = None) -> Any:
        return fields.get(f"llama.{key}", absent)

    embedding = tensors["token_embd.weight"].shape
    require(len(embedding) == 2, f"token_embd.weight has the shape {embedding}, not two axes.")
    config = LlamaConfig(
        vocab_size=embedding[0],
        num_kv_heads=get("attention.head_count_kv"),
        head_width=get("attention.key_length"),
        rope_base=get("rope.freq_base", 10_000.0),
        tied_head="output.weight" not in tensors,
        **{ours: get(key) for ours, key in keys.items()},
    )
    rotated = get("rope.dimension_count", config.head_size)
    require(
        rotated == config.head_size == get("attention.value_length", config.head_size),
        f"{shown(rotated)} of {config.head_size} components of a head are rotated; all must be, "
        "and keys and values must have the same width.",
    )
    kind, factor = get("rope.scaling.type"), get("rope.scaling.factor", 1.0)
    require_choice("llama.rope.scaling.type", kind, (None, "none", "linear"))
    scaling = RopeScaling("linear", factor) if kind == "linear" else None
    if rope_factors is not None:
        original = get("rope.scaling.original_context_length", RopeScaling.original_positions)
        scaling = _llama3_scaling(config, rope_factors, original)
    return dataclasses.replace(config, rope_scaling=scaling)


def _llama3_scaling(
    config: LlamaConfig, stored: StoredTensor, original_positions: int
) -> RopeScaling:
    """The rope scaling of Llama 3, which is stored as what each frequency is divided by."""
    wanted = (config.head_size // 2,)
    require(stored.shape == wanted, f"{_ROPE_FACTORS} has the shape {stored.shape}, not {wanted}.")
    factors = stored.read()
    scaling = RopeScaling("llama3", float(factors.max()), original_positions=original_positions)
    frequencies = functools.partial(rotary_frequencies, config.head_size, config.rope_base)
    expected = frequencies() / frequencies(scaling)
    require(
        np.allclose(factors, expected, rtol=1e-4),
        f"{_ROPE_FACTORS} does not divide the rotary frequencies as Llama 3 does; nothing else is "
        "supported.",
    )
    return scaling
