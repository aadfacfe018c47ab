"""The rotary part of a config.json: how frequencies are stretched, both ways."""

import math
from collections.abc import Mapping
from typing import Any

from gradmem_jax.checks import require, require_instance, require_number
from gradmem_jax.foreign_text import shown
from gradmem_jax.lm.rotary import RopeScaling

_ORIGINAL = "original_max_position_embeddings"
# Of each kind: our field to their key, and what an absent key means; without that it is needed.
_KEYS: dict[str, dict[str, tuple[Any, ...]]] = {
    "linear": {"factor": ("factor",)},
    "dynamic": {"factor": ("factor",)},
    "llama3": {
        "factor": ("factor",),
        "low_frequency_factor": ("low_freq_factor",),
        "high_frequency_factor": ("high_freq_factor",),
        "original_positions": (_ORIGINAL,),
    },
    "yarn": {
        "factor": ("factor", None),
        "original_positions": (_ORIGINAL, None),
        "beta_fast": ("beta_fast", 32.0),
        "beta_slow": ("beta_slow", 1.0),
        "truncate": ("truncate", True),
        "attention_factor": ("attention_factor", None),
    },
    "longrope": {
        "factor": ("factor", None),
        "original_positions": (_ORIGINAL, None),
        "short_factors": ("short_factor",),
        "long_factors": ("long_factor",),
        "attention_factor": ("attention_factor", None),
    },
}
_OLD_NAMES = {"su": "longrope"}
_OTHERS = ("type", "rope_type", "finetuned")
_HEEDED = {"yarn": ("mscale", "mscale_all_dim")}


def old_rope_keys(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the rotary keys of transformers 4, which transformers 5 has in a group.

    As there, `rope_scaling` goes before `rope_parameters`, and what a group says before the same
    key outside of it.
    """
    group = dict(theirs.get("rope_parameters") or {})
    scaling = dict(theirs.get("rope_scaling") or {})
    if not group and not scaling:
        return dict(theirs)
    rest = {key: value for key, value in theirs.items() if key != "rope_parameters"}
    if "full_attention" in group:
        rest |= _of_window_layers(group.pop("sliding_attention", None))
        require_instance("rope_parameters.full_attention", group["full_attention"], dict)
        whole = group.pop("full_attention")
        group |= {**whole, **scaling}
    else:
        group = scaling or group
    old = {key: group.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in group}
    if theirs.get("model_type") == "gpt_neox":
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        old = {names[key]: value for key, value in old.items()}
    return {**rest, **old, "rope_scaling": group if _kind(group) != "default" else None}


def _kind(group: Mapping[str, Any]) -> Any:
    """The type of a group of rotary keys; one that says nothing else is the default."""
    return group.get("rope_type", group.get("type", None if group else "default"))


def _of_window_layers(group: Any) -> dict[str, Any]:
    require_instance("rope_parameters.sliding_attention", group, dict | None)
    group = group or {}
    kind = group.get("rope_type", "default")
    require(
        kind == "default",
        f"rope_parameters.sliding_attention of type {shown(kind)} is not supported, only "
        "'default'.",
    )
    return {"rope_local_base_freq": group["rope_theta"]} if "rope_theta" in group else {}


def read_rope_scaling(theirs: Mapping[str, Any], max_positions: int) -> RopeScaling | None:
    """Translates `rope_scaling` of a config.json.

    Args:
        theirs: the config.json, with the keys of transformers 4.
        max_positions: what it says of the longest sequence.

    Raises:
        ValueError: it asks for something that is not computed here, or lacks a key.
    """
    group = theirs.get("rope_scaling")
    if group is None:
        return None
    kind = _kind(group)
    kind = _OLD_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if theirs.get("model_type") == "phi3" and kind == "yarn":
        kind = "longrope"
    if kind == "default":
        return None
    require(
        isinstance(kind, str) and kind in _KEYS,
        f"rope_scaling of type {shown(kind)} is not supported, only {', '.join(_KEYS)}.",
    )
    keys = _KEYS[kind]
    if theirs.get(_ORIGINAL) is not None and "original_positions" in keys:
        group = {**group, _ORIGINAL: theirs[_ORIGINAL]}
    missing = [key for key, *absent in keys.values() if not absent and key not in group]
    require(not missing, f"rope_scaling of type {kind!r} lacks {missing}.")
    heeded = {key for key, *_ in keys.values()} | {*_OTHERS, *_HEEDED.get(kind, ())}
    if "original_positions" not in keys:  # transformers does not look at it
        heeded.add(_ORIGINAL)
    strange = {
        key: value for key, value in group.items() if key not in heeded and value is not None
    }
    require(not strange, f"rope_scaling of type {kind!r} with {shown(strange)} is not supported.")
    values = {ours: group.get(key, *absent) for ours, (key, *absent) in keys.items()}
    may_lack = {ours for ours, (_, *absent) in keys.items() if absent and values[ours] is None}
    if kind == "dynamic" or "original_positions" in may_lack:
        values["original_positions"] = max_positions
    if "factor" in may_lack:
        original = require_number(_ORIGINAL, values["original_positions"], above=0)
        values["factor"] = max_positions / original
    for ours, (_, *absent) in keys.items():
        if values[ours] is None and absent:
            values[ours] = absent[0]
    if kind == "yarn" and values["attention_factor"] is None:
        values["attention_factor"] = _yarn_attention(group, values["factor"])
    return RopeScaling(kind=kind, **values)


def _yarn_attention(group: Mapping[str, Any], factor: Any) -> float | None:
    """The attention factor that `mscale` and `mscale_all_dim` say, or None."""
    scales = [group.get("mscale"), group.get("mscale_all_dim")]
    if not all(scales):
        return None
    factor = require_number("rope_scaling.factor", factor, above=0)
    over, under = (
        1.0 if factor <= 1 else 0.1 * require_number("mscale", scale) * math.log(factor) + 1
        for scale in scales
    )
    return over / under


def write_rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    """Makes `rope_scaling` of a config.json: the inverse of `read_rope_scaling`.

    Of longrope it says the attention factor always: transformers 4 makes its own of the longest
    sequence, which a user may change.
    """
    values = {key: getattr(scaling, ours) for ours, (key, *_) in _KEYS[scaling.kind].items()}
    if scaling.kind == "longrope":
        values["attention_factor"] = scaling.turned_scale
    values = {key: [*x] if isinstance(x, tuple) else x for key, x in values.items()}
    return {"rope_type": scaling.kind} | {k: x for k, x in values.items() if x is not None}
