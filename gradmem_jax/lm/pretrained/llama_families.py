"""Llama and its relatives as Hugging Face stores them, one table each."""

import functools
from collections.abc import Mapping
from typing import Any

from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.pretrained.family import NEEDED, Family
from gradmem_jax.lm.pretrained.llama_keys import (
    read_gemma,
    read_qwen,
    read_smollm3,
    read_windows,
    write_gemma,
    write_phi3,
    write_qwen,
    write_smollm3,
    write_window,
    write_windows,
)
from gradmem_jax.lm.pretrained.tensor_layout import Layout

_NORMS_BEFORE = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
_NORMS_AFTER = {
    "post_attention_layernorm": "attention_output_norm",
    "post_feedforward_layernorm": "mlp_output_norm",
}
_NORMS_BOTH = {
    "input_layernorm": "attention_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    **_NORMS_AFTER,
}
_BIASES = {
    "attention_bias": ("attention_bias", False),
    "output_bias": ("attention_bias", False),
}


def _fields(**absent: Any) -> dict[str, tuple[str, Any]]:
    """Fields that all have; what absent keys mean may be said otherwise."""
    fields = {
        "vocab_size": ("vocab_size", NEEDED),
        "width": ("hidden_size", NEEDED),
        "num_layers": ("num_hidden_layers", NEEDED),
        "num_heads": ("num_attention_heads", NEEDED),
        "num_kv_heads": ("num_key_value_heads", None),
        "head_width": ("head_dim", None),
        "mlp_width": ("intermediate_size", NEEDED),
        "max_positions": ("max_position_embeddings", 2048),
        "norm_epsilon": ("rms_norm_eps", 1e-6),
        "init_std": ("initializer_range", 0.02),
        "tied_head": ("tie_word_embeddings", False),
        "rope_base": ("rope_theta", 10_000.0),
    }
    return fields | {ours: (fields[ours][0], value) for ours, value in absent.items()}


def _layout(norms: Mapping[str, str], query_norm: str = "k", key_norm: str = "k") -> Layout:
    """All tensors that such a model may have; see tensor_layout.py.

    Args:
        norms: their names of the norms of a layer, and ours.
        query_norm: axes of the scale of the norm of queries.
        key_norm: the same of keys.
    """
    attention = {"q": ("query", "h"), "k": ("key", "g"), "v": ("value", "g")}
    layer: dict[str, tuple[str, str]] = {}
    for theirs, (ours, heads) in attention.items():
        name, path = f"self_attn.{theirs}_proj", f"attention/{ours}"
        layer[f"{name}.weight"] = (f"{path}/kernel", f"{heads}k d -> d {heads} k")
        layer[f"{name}.bias"] = (f"{path}/bias", f"{heads}k -> {heads} k")
    layer |= {
        "self_attn.q_norm.weight": ("attention/query_norm/scale", f"{query_norm} -> {query_norm}"),
        "self_attn.k_norm.weight": ("attention/key_norm/scale", f"{key_norm} -> {key_norm}"),
        "self_attn.o_proj.weight": ("attention/output/kernel", "d hk -> h k d"),
        "self_attn.o_proj.bias": ("attention/output/bias", "d -> d"),
    }
    for name, shape in (("gate", "f d -> d f"), ("up", "f d -> d f"), ("down", "d f -> f d")):
        layer[f"mlp.{name}_proj.weight"] = (f"{name}/kernel", shape)
        bias = shape.split()[0]
        layer[f"mlp.{name}_proj.bias"] = (f"{name}/bias", f"{bias} -> {bias}")
    layer |= {f"{theirs}.weight": (f"{ours}/scale", "d -> d") for theirs, ours in norms.items()}
    return {
        "model.embed_tokens.weight": ("embedding", "v d -> v d"),
        **{
            f"model.layers.{{}}.{theirs}": (f"layers/{ours}", shape)
            for theirs, (ours, shape) in layer.items()
        },
        "model.norm.weight": ("final_norm/scale", "d -> d"),
        "lm_head.weight": ("head", "v d -> d v"),
    }


_SILU = {"hidden_act": ("silu", "swish")}
_WHOLE_HEADS = {"partial_rotary_factor": (1.0, None), "rope_interleaved": (False,)}
# Transformers does not look at these where a family has no windows.
_WINDOW_KEYS = ("sliding_window", "layer_types", "use_sliding_window", "max_window_layers")
_GEMMA = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (False, None),
    **_WHOLE_HEADS,
}
_GEMMA_IMPLIED = {"norms": "both", "activation": "gelu_tanh", "norm_offset": 1.0}
_GEMMA_FIELDS = {**_BIASES, "query_scalar": ("query_pre_attn_scalar", 256)}
_NO_BIAS = {"attention_bias": (False,), "mlp_bias": (False,)}


def _family(model_type: str, name: str, **options: Any) -> Family:
    defaults: dict[str, Any] = dict(
        layout=_layout(_NORMS_BEFORE),
        base="model.",
        config_class=LlamaConfig,
        base_architecture=f"{name}Model",
        more_keys=_WINDOW_KEYS,
    )
    return Family(
        model_type=model_type,
        architecture=f"{name}ForCausalLM",
        **defaults | options,
    )


LLAMA_FAMILIES = (
    _family(
        "llama",
        "Llama",
        fields=_fields() | _BIASES | {"mlp_bias": ("mlp_bias", False)},
        fixed=_SILU | _WHOLE_HEADS,
    ),
    _family(
        "mistral",
        "Mistral",
        fields=_fields(num_kv_heads=8, max_positions=131072),
        fixed=_SILU | _WHOLE_HEADS | _NO_BIAS | {"layer_types": (None,)},
        read_more=functools.partial(read_windows, absent=4096),
        write_more=write_window,
    ),
    _family(
        "ministral",
        "Ministral",
        fields=_fields(num_kv_heads=8, max_positions=131072),
        fixed=_SILU | _WHOLE_HEADS | _NO_BIAS,
        read_more=functools.partial(read_windows, absent=4096),
        write_more=write_windows,
    ),
    _family(
        "qwen2",
        "Qwen2",
        fields=_fields(num_kv_heads=32, max_positions=32768),
        fixed=_SILU | _WHOLE_HEADS | {"mlp_bias": (False,)},
        implied={"attention_bias": True},
        read_more=read_qwen,
        more_keys=(*_WINDOW_KEYS, "attention_bias"),
        write_more=write_qwen,
    ),
    _family(
        "qwen3",
        "Qwen3",
        fields=_fields(num_kv_heads=32, max_positions=32768, head_width=128) | _BIASES,
        fixed=_SILU | _WHOLE_HEADS | {"mlp_bias": (False,)},
        implied={"qk_norm": "head"},
        read_more=read_qwen,
        write_more=write_qwen,
    ),
    _family(
        "smollm3",
        "SmolLM3",
        fields=_fields(num_kv_heads=4, max_positions=32768, tied_head=True, rope_base=2e6)
        | _BIASES
        | {"mlp_bias": ("mlp_bias", False)},
        fixed=_SILU | _WHOLE_HEADS,
        read_more=read_smollm3,
        more_keys=(*_WINDOW_KEYS, "no_rope_layers", "no_rope_layer_interval"),
        write_more=write_smollm3,
    ),
    _family(
        "olmo2",
        "Olmo2",
        fields=_fields(norm_epsilon=1e-5) | _BIASES,
        fixed=_SILU | _WHOLE_HEADS | {"mlp_bias": (False,), "clip_qkv": (None,)},
        implied={"norms": "after", "qk_norm": "all"},
        layout=_layout(_NORMS_AFTER, "hk", "gk"),
    ),
    _family(
        "phi3",
        "Phi3",
        fields=_fields(norm_epsilon=1e-5, max_positions=4096)
        | {"rotary_fraction": ("partial_rotary_factor", 1.0)},
        fixed=_SILU | _NO_BIAS | {"layer_types": (None,)},
        fused={
            "qkv_proj.": ("q_proj.", "k_proj.", "v_proj."),
            "gate_up_proj.": ("gate_proj.", "up_proj."),
        },
        read_more=read_windows,
        more_keys=(*_WINDOW_KEYS, "interpolate_factor", "full_attn_mod"),
        write_more=write_phi3,
    ),
    _family(
        "gemma2",
        "Gemma2",
        fields=_fields(num_kv_heads=4, head_width=256, max_positions=8192, tied_head=True)
        | _GEMMA_FIELDS
        | {
            "attention_softcap": ("attn_logit_softcapping", 50.0),
            "logit_softcap": ("final_logit_softcapping", 30.0),
        },
        fixed=_GEMMA,
        implied=_GEMMA_IMPLIED,
        layout=_layout(_NORMS_BOTH),
        read_more=functools.partial(read_gemma, every=2),
        more_keys=(*_WINDOW_KEYS, "hidden_act", "cache_implementation", "sliding_window_size"),
        write_more=write_gemma,
    ),
    _family(
        "gemma3_text",
        "Gemma3",
        fields=_fields(
            num_kv_heads=4, head_width=256, max_positions=131072, tied_head=True, rope_base=1e6
        )
        | _GEMMA_FIELDS
        | {
            "attention_softcap": ("attn_logit_softcapping", None),
            "logit_softcap": ("final_logit_softcapping", None),
        },
        fixed=_GEMMA,
        implied=_GEMMA_IMPLIED | {"qk_norm": "head"},
        layout=_layout(_NORMS_BOTH),
        base_architecture="Gemma3TextModel",
        read_more=functools.partial(read_gemma, every=6),
        more_keys=(
            *_WINDOW_KEYS,
            "hidden_act",
            "cache_implementation",
            "rope_local_base_freq",
            "sliding_window_pattern",
            "_sliding_window_pattern",
        ),
        write_more=write_gemma,
    ),
)
