"""Llama and its relatives as Hugging Face stores them, one table each."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from gradmem_jax.checks import require, require_instance, require_integer
from gradmem_jax.foreign_text import shown
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.pretrained.family import NEEDED, Family
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
_SLIDING, _FULL = "sliding_attention", "full_attention"
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


Rule = Callable[[Mapping[str, Any], int], bool]


def _all_layers(theirs: Mapping[str, Any], i: int) -> bool:
    del theirs, i
    return True


def _qwen_rule(theirs: Mapping[str, Any], i: int) -> bool:
    return i >= require_integer("max_window_layers", theirs.get("max_window_layers", 28), 0)


def _gemma_rule(theirs: Mapping[str, Any], i: int, every: int) -> bool:
    every = theirs.get("sliding_window_pattern", theirs.get("_sliding_window_pattern", every))
    return (i + 1) % require_integer("sliding_window_pattern", every, 1) != 0


def _read_windows(
    theirs: Mapping[str, Any],
    config: LlamaConfig,
    *,
    rule: Rule = _all_layers,
    absent: int | None = None,
) -> dict[str, Any]:
    """Which layers have a window: as `layer_types` says, or else a family's rule."""
    window = theirs.get("sliding_window", absent)
    if not _flag(theirs, "use_sliding_window", True):
        window = None
    numbers = range(config.num_layers)
    types = theirs.get("layer_types")
    if types is None:
        named = [i for i in numbers if window is not None and rule(theirs, i)]
    else:
        require(
            isinstance(types, list)
            and len(types) == config.num_layers
            and all(kind in (_SLIDING, _FULL) for kind in types),
            f"layer_types={shown(types)} must be a list of {_SLIDING!r} and {_FULL!r}, one for "
            f"each of the {config.num_layers} layers.",
        )
        named = [i for i in numbers if types[i] == _SLIDING]
        require(
            window is not None or not named,
            f"layer_types has {_SLIDING!r}, but no sliding_window says how far it sees.",
        )
    if not named:
        return {}
    return {"window": window, "window_layers": () if len(named) == len(numbers) else named}


def _flag(theirs: Mapping[str, Any], key: str, absent: bool) -> bool:
    value = theirs.get(key, absent)
    require_instance(f"config.json: {key}", value, bool)
    return value


def _write_window(config: LlamaConfig) -> dict[str, Any]:
    return {"sliding_window": config.window}


def _write_windows(config: LlamaConfig) -> dict[str, Any]:
    types = [_SLIDING if windowed else _FULL for windowed in config.layers_with_window]
    return {"sliding_window": config.window, "layer_types": types}


def _read_qwen(theirs: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    theirs = {"use_sliding_window": False, **theirs}
    return _read_windows(theirs, config, rule=_qwen_rule, absent=4096)


def _write_qwen(config: LlamaConfig) -> dict[str, Any]:
    windowed = config.layers_with_window
    first = windowed.index(True) if any(windowed) else config.num_layers
    used = {"use_sliding_window": any(windowed), "max_window_layers": first}
    return _write_windows(config) | used


def _read_gemma(theirs: Mapping[str, Any], config: LlamaConfig, every: int) -> dict[str, Any]:
    rule = functools.partial(_gemma_rule, every=every)
    windows = _read_windows(theirs, config, rule=rule, absent=4096)
    base = {}
    if every == 6 and windows:
        base["window_rope_base"] = theirs.get("rope_local_base_freq", 10_000.0)
    return {"embedding_scale": config.width**0.5, **windows, **base}


def _write_gemma(config: LlamaConfig) -> dict[str, Any]:
    scalar = config.head_size if config.query_scalar is None else config.query_scalar
    whole = int(scalar) if float(scalar).is_integer() else scalar  # transformers wants an int
    more: dict[str, Any] = {"query_pre_attn_scalar": whole}
    if config.window_rope_base is not None:
        more["rope_local_base_freq"] = config.window_rope_base
    return _write_windows(config) | more


def _read_smollm3(theirs: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    rotated = theirs.get("no_rope_layers")
    if rotated is None:
        every = require_integer(
            "no_rope_layer_interval", theirs.get("no_rope_layer_interval", 4), 1
        )
        rotated = [int((i + 1) % every != 0) for i in range(config.num_layers)]
    require(
        isinstance(rotated, list)
        and len(rotated) == config.num_layers
        and all(type(x) is int and x in (0, 1) for x in rotated),
        f"no_rope_layers={shown(rotated)} must be a list of 0 (no rotary positions) and 1, one for "
        f"each of the {config.num_layers} layers.",
    )

    def rule(theirs: Mapping[str, Any], i: int) -> bool:
        return not rotated[i]

    theirs = {"use_sliding_window": False, **theirs}
    still = [i for i, x in enumerate(rotated) if not x]
    return {"no_rope_layers": still, **_read_windows(theirs, config, rule=rule)}


def _write_smollm3(config: LlamaConfig) -> dict[str, Any]:
    rotated = [int(i not in config.no_rope_layers) for i in range(config.num_layers)]
    used = {"use_sliding_window": config.window is not None, "no_rope_layers": rotated}
    return _write_windows(config) | used


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
        read_more=functools.partial(_read_windows, absent=4096),
        write_more=_write_window,
    ),
    _family(
        "ministral",
        "Ministral",
        fields=_fields(num_kv_heads=8, max_positions=131072),
        fixed=_SILU | _WHOLE_HEADS | _NO_BIAS,
        read_more=functools.partial(_read_windows, absent=4096),
        write_more=_write_windows,
    ),
    _family(
        "qwen2",
        "Qwen2",
        fields=_fields(num_kv_heads=32, max_positions=32768),
        fixed=_SILU | _WHOLE_HEADS | {"attention_bias": (True,), "mlp_bias": (False,)},
        implied={"attention_bias": True},
        read_more=_read_qwen,
        write_more=_write_qwen,
    ),
    _family(
        "qwen3",
        "Qwen3",
        fields=_fields(num_kv_heads=32, max_positions=32768, head_width=128) | _BIASES,
        fixed=_SILU | _WHOLE_HEADS | {"mlp_bias": (False,)},
        implied={"qk_norm": "head"},
        read_more=_read_qwen,
        write_more=_write_qwen,
    ),
    _family(
        "smollm3",
        "SmolLM3",
        fields=_fields(num_kv_heads=4, max_positions=32768, tied_head=True, rope_base=2e6)
        | _BIASES
        | {"mlp_bias": ("mlp_bias", False)},
        fixed=_SILU | _WHOLE_HEADS,
        read_more=_read_smollm3,
        more_keys=(*_WINDOW_KEYS, "no_rope_layers", "no_rope_layer_interval"),
        write_more=_write_smollm3,
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
        read_more=_read_windows,
        more_keys=(*_WINDOW_KEYS, "interpolate_factor", "full_attn_mod"),
        write_more=_write_window,
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
        read_more=functools.partial(_read_gemma, every=2),
        more_keys=(*_WINDOW_KEYS, "hidden_act", "cache_implementation", "sliding_window_size"),
        write_more=_write_gemma,
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
        read_more=functools.partial(_read_gemma, every=6),
        more_keys=(
            *_WINDOW_KEYS,
            "hidden_act",
            "cache_implementation",
            "rope_local_base_freq",
            "sliding_window_pattern",
            "_sliding_window_pattern",
        ),
        write_more=_write_gemma,
    ),
)
