"""What the keys of a GGUF file say of a language model, as llama.cpp understands them."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradmem_jax.checks import (
    require,
    require_choice,
    require_integer,
    require_number,
)
from gradmem_jax.foreign_text import shown
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.pretrained.llama_keys import layer_numbers
from gradmem_jax.lm.pretrained.tensor_layout import StoredTensor
from gradmem_jax.lm.rotary import RopeScaling, rotary_frequencies

# Tensors that are no parameters but say how positions are stretched.
LLAMA3_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = (LLAMA3_FACTORS, LONG_FACTORS, SHORT_FACTORS)
_SIZES = {
    "width": "embedding_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "mlp_width": "feed_forward_length",
    "max_positions": "context_length",
    "norm_epsilon": "attention.layer_norm_rms_epsilon",
}
# Keys that do not change what is computed, whatever their value.
_HARMLESS = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "pooling_type")
# Keys with the only value that is computed here.
_FIXED = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}


class Architecture(NamedTuple):
    """What llama.cpp knows of an architecture without being told.

    Attributes:
        norms: names of the norms of a layer, and ours.
        implied: fields of our configuration that all its models have.
        pairs_are_neighbours: whether rotary pairs are neighbours in queries and keys.
        fused: tensors that hold several; see tensor_layout.py.
        window_every: of so many layers the last one has no window; 1 is none of them.
        window: how many tokens windows have if no key says it; None is no windows.
        window_rope_base: the rotary base of windows if no key says it.
        still_every: of so many layers the last one has no rotary positions; None is none of them.
    """

    norms: Mapping[str, str]
    implied: Mapping[str, Any] = {}
    pairs_are_neighbours: bool = False
    fused: Mapping[str, tuple[str, ...]] = {}
    window_every: int | None = None
    window: int | None = None
    window_rope_base: float | None = None
    still_every: int | None = None


_BEFORE = {"attn_norm": "attention_norm", "ffn_norm": "mlp_norm"}
_AFTER = {"post_attention_norm": "attention_output_norm", "post_ffw_norm": "mlp_output_norm"}
_GEMMA = {"norms": "both", "activation": "gelu_tanh", "norm_offset": 1.0}
_FUSED = {
    "attn_qkv.": ("attn_q.", "attn_k.", "attn_v."),
    "ffn_up.": ("ffn_gate.", "ffn_up."),
}
ARCHITECTURES = {
    "llama": Architecture(_BEFORE, pairs_are_neighbours=True, window_every=0),
    "qwen2": Architecture(_BEFORE),
    "qwen3": Architecture(_BEFORE, {"qk_norm": "head"}),
    "smollm3": Architecture(_BEFORE, pairs_are_neighbours=True, still_every=4),
    "olmo2": Architecture(_AFTER, {"norms": "after", "qk_norm": "all"}),
    "phi3": Architecture(_BEFORE, fused=_FUSED, window_every=0),
    "gemma2": Architecture(_BEFORE | _AFTER, _GEMMA, window_every=2, window=4096),
    "gemma3": Architecture(
        _BEFORE | _AFTER, _GEMMA | {"qk_norm": "head"}, window_every=6, window_rope_base=10_000.0
    ),
}
# Gemma's largest models have this many layers; their scores are scaled by another width.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


class _Keys:
    """The keys of an architecture; those that nobody asks for are found at the end."""

    def __init__(self, fields: Mapping[str, Any], kind: str) -> None:
        self.fields = {
            key.removeprefix(f"{kind}."): x
            for key, x in fields.items()
            if key.startswith(f"{kind}.")
        }
        self.kind = kind
        self.asked = {*_HARMLESS}

    def get(self, key: str, absent: Any = None) -> Any:
        """The value of a key."""
        self.asked.add(key)
        return self.fields.get(key, absent)

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing for this model, whatever their value."""
        self.asked.update(keys)

    def refuse_others(self) -> None:
        """Raises ValueError if there are keys that nobody has asked for and that say something."""
        unknown = {
            f"{self.kind}.{key}": value
            for key, value in self.fields.items()
            if key not in self.asked and value not in (None, False, 0, "")
        }
        require(
            not unknown,
            f"the GGUF file has {shown(unknown)}, which is not supported for this model.",
        )


def read_gguf_config(fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> LlamaConfig:
    """Translates the keys of a GGUF file.

    Args:
        fields: its keys.
        tensors: all of its tensors.

    Raises:
        ValueError: keys are missing, or ask for something that is not computed here.
    """
    kind: Any = fields.get("general.architecture")
    require(
        isinstance(kind, str) and kind in ARCHITECTURES,
        f"general.architecture={shown(kind)} is not supported, only {', '.join(ARCHITECTURES)}.",
    )
    architecture, keys = ARCHITECTURES[kind], _Keys(fields, kind)
    for key, value in _FIXED.items():
        found = keys.get(key, value)
        require(
            found == value,
            f"{kind}.{key}={shown(found)} is not supported, only {value}"
            f"{': experts are not supported' if 'expert' in key else ''}.",
        )
    missing = [f"{kind}.{key}" for key in _SIZES.values() if keys.get(key) is None]
    missing += ["token_embd.weight"] if "token_embd.weight" not in tensors else []
    require(not missing, f"the GGUF file lacks {', '.join(missing)}.")
    embedding = tensors["token_embd.weight"].shape
    require(len(embedding) == 2, f"token_embd.weight has the shape {embedding}, not two axes.")
    config = LlamaConfig(
        vocab_size=embedding[0],
        num_kv_heads=keys.get("attention.head_count_kv"),
        head_width=keys.get("attention.key_length"),
        rope_base=keys.get("rope.freq_base", 10_000.0),
        tied_head="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
        **{ours: keys.get(key) for ours, key in _SIZES.items()},
        **architecture.implied,
    )
    config = dataclasses.replace(config, **_heads(keys, config), **_gemma(keys, config))
    config = dataclasses.replace(config, **_layers(keys, config, architecture))
    config = dataclasses.replace(config, rope_scaling=_scaling(keys, config, tensors))
    keys.refuse_others()
    return config


def _heads(keys: _Keys, config: LlamaConfig) -> dict[str, Any]:
    """How much of a head is rotated."""
    rotated = keys.get("rope.dimension_count", config.head_size)
    width = keys.get("attention.value_length", config.head_size)
    may_be_part = keys.kind == "phi3" and type(rotated) is int and 0 < rotated < config.head_size
    require(
        width == config.head_size and (rotated == width or may_be_part),
        f"{shown(rotated)} of {config.head_size} components of a head are rotated; all must be, "
        "and keys and values must have the same width.",
    )
    return {"rotary_fraction": rotated / config.head_size}


def _gemma(keys: _Keys, config: LlamaConfig) -> dict[str, Any]:
    if keys.kind not in _LAYERS_OF_27B:
        return {}
    is_second = keys.kind == "gemma2"
    fields: dict[str, Any] = {
        "embedding_scale": config.width**0.5,
        "logit_softcap": keys.get("final_logit_softcapping", 30.0 if is_second else None),
    }
    if is_second:
        fields["attention_softcap"] = keys.get("attn_logit_softcapping", 50.0)
    if config.num_layers == _LAYERS_OF_27B[keys.kind]:
        fields["query_scalar"] = config.width / config.num_heads
    return fields


def _layers(keys: _Keys, config: LlamaConfig, architecture: Architecture) -> dict[str, Any]:
    """Which layers have windows, and which no rotary positions."""
    numbers = layer_numbers(config)
    fields: dict[str, Any] = {}
    if architecture.still_every is not None:
        last = architecture.still_every - 1
        fields["no_rope_layers"] = [i for i in numbers if i % architecture.still_every == last]
    window = keys.get("attention.sliding_window", architecture.window)
    base = architecture.window_rope_base
    sees_all = base is None and type(window) is int and window >= config.max_positions
    if not window or sees_all:
        keys.ignore("attention.sliding_window_pattern", "rope.freq_base_swa")
        return fields
    every = architecture.window_every
    require(
        every is not None,
        f"{keys.kind}.attention.sliding_window={shown(window)} is not supported for this model.",
    )
    pattern = keys.get("attention.sliding_window_pattern", every)
    if isinstance(pattern, list):
        require(
            len(pattern) == config.num_layers and all(type(x) is bool for x in pattern),
            f"attention.sliding_window_pattern={shown(pattern)} must be a bool for each layer.",
        )
        named = [i for i in numbers if pattern[i]]
    else:
        require_integer("attention.sliding_window_pattern", pattern, 0)
        named = [i for i in numbers if pattern == 0 or i % pattern < pattern - 1]
    if named:
        fields |= {"window": window, "window_layers": named if len(named) < len(numbers) else ()}
        fields["window_rope_base"] = keys.get("rope.freq_base_swa", base)
    return fields


def _scaling(
    keys: _Keys, config: LlamaConfig, tensors: Mapping[str, StoredTensor]
) -> RopeScaling | None:
    """How rotary positions are stretched; a factor without a type is linear, as in old files."""
    old = keys.get("rope.scale_linear", 1.0)
    factor = keys.get("rope.scaling.factor", old)
    kind = keys.get("rope.scaling.type", "linear")
    kinds = ("none", "linear", "yarn", "longrope")
    require_choice(f"{keys.kind}.rope.scaling.type", kind, kinds)
    original = keys.get("rope.scaling.original_context_length")
    factor = require_number(f"{keys.kind}.rope.scaling.factor", factor) or 1.0
    betas = {
        ours: keys.get(f"rope.scaling.yarn_{ours}", absent)
        for ours, absent in (("beta_fast", 32.0), ("beta_slow", 1.0))
    }
    attention = keys.get("rope.scaling.attn_factor")
    if LONG_FACTORS in tensors:
        return _longrope(config, tensors, original, attention)
    require(
        kind != "longrope", f"the GGUF file lacks {LONG_FACTORS}, which 'longrope' scaling needs."
    )
    require(
        attention in (None, 1.0),
        f"{keys.kind}.rope.scaling.attn_factor={shown(attention)} is not supported here.",
    )
    if LLAMA3_FACTORS in tensors:
        require(
            kind == "none" or factor == 1,
            f"the GGUF file has both {LLAMA3_FACTORS} and rope.scaling.factor={factor}; only one "
            "of them is supported.",
        )
        return _llama3(config, tensors[LLAMA3_FACTORS], original or RopeScaling.original_positions)
    if kind == "none" or factor == 1:
        return None
    if kind == "linear":
        return RopeScaling("linear", factor)
    original = config.max_positions if original is None else original
    return RopeScaling("yarn", factor, original_positions=original, **betas)


def _longrope(
    config: LlamaConfig,
    tensors: Mapping[str, StoredTensor],
    original: Any,
    attention: float | None,
) -> RopeScaling:
    require(SHORT_FACTORS in tensors, f"the GGUF file lacks {SHORT_FACTORS}.")
    long, short = (
        tuple(map(float, np.asarray(tensors[name].read(), np.float32).reshape(-1)))
        for name in (LONG_FACTORS, SHORT_FACTORS)
    )
    original = config.max_positions if original is None else original
    require_integer("rope.scaling.original_context_length", original, 1)
    return RopeScaling(
        "longrope",
        config.max_positions / original,
        original_positions=original,
        short_factors=short,
        long_factors=long,
        attention_factor=attention,
    )


def _llama3(config: LlamaConfig, stored: StoredTensor, original_positions: int) -> RopeScaling:
    """The rope scaling of Llama 3, which is stored as what each frequency is divided by."""
    wanted = (config.rotary_width // 2,)
    name = LLAMA3_FACTORS
    require(stored.shape == wanted, f"{name} has the shape {stored.shape}, not {wanted}.")
    factors = stored.read()
    scaling = RopeScaling("llama3", float(factors.max()), original_positions=original_positions)
    frequencies = functools.partial(rotary_frequencies, config.rotary_width, config.rope_base)
    expected = frequencies() / frequencies(scaling)
    require(
        np.allclose(factors, expected, rtol=1e-4),
        f"{name} does not divide the rotary frequencies as Llama 3 does; nothing else is "
        "supported.",
    )
    return scaling
