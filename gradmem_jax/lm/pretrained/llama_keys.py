"""Windows, and layers without rotary positions, in the config.json of Llama's relatives."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from gradmem_jax.checks import require, require_instance, require_integer
from gradmem_jax.foreign_text import shown
from gradmem_jax.lm.llama import LlamaConfig

_SLIDING, _FULL = "sliding_attention", "full_attention"
_MOST_LAYERS = 10_000
Rule = Callable[[Mapping[str, Any], int], bool]


def layer_numbers(config: LlamaConfig) -> range:
    """Numbers of the layers; refuses more than any file has, before anyone goes over them."""
    require(
        config.num_layers <= _MOST_LAYERS,
        f"the configuration says {config.num_layers} layers; at most {_MOST_LAYERS} are read.",
    )
    return range(config.num_layers)


def _all_layers(theirs: Mapping[str, Any], i: int) -> bool:
    del theirs, i
    return True


def _qwen_rule(theirs: Mapping[str, Any], i: int) -> bool:
    return i >= require_integer("max_window_layers", theirs.get("max_window_layers", 28), 0)


def _gemma_rule(theirs: Mapping[str, Any], i: int, every: int) -> bool:
    every = theirs.get("sliding_window_pattern", theirs.get("_sliding_window_pattern", every))
    return (i + 1) % require_integer("sliding_window_pattern", every, 1) != 0


def read_windows(
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
    numbers = layer_numbers(config)
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


def write_window(config: LlamaConfig) -> dict[str, Any]:
    """The key of a window that all layers have, or none."""
    return {"sliding_window": config.window}


def write_phi3(config: LlamaConfig) -> dict[str, Any]:
    """The keys of Phi-3; transformers 4 opens it with these three of longrope only."""
    scaling, keys = config.rope_scaling, write_window(config)
    if scaling is not None and scaling.kind == "longrope":
        factor = config.max_positions / scaling.original_positions
        implied = dataclasses.replace(scaling, factor=factor, attention_factor=None)
        if scaling.factor == factor and scaling.turned_scale == implied.turned_scale:
            keys["rope_scaling"] = {
                "type": "longrope",
                "short_factor": [*scaling.short_factors],
                "long_factor": [*scaling.long_factors],
            }
    return keys


def write_windows(config: LlamaConfig) -> dict[str, Any]:
    """The keys of windows that some layers may have."""
    types = [_SLIDING if windowed else _FULL for windowed in config.layers_with_window]
    return {"sliding_window": config.window, "layer_types": types}


def read_qwen(theirs: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """Windows of Qwen: only where they are used, and not in the first layers."""
    theirs = {"use_sliding_window": False, **theirs}
    return read_windows(theirs, config, rule=_qwen_rule, absent=4096)


def write_qwen(config: LlamaConfig) -> dict[str, Any]:
    """The inverse of `read_qwen`."""
    windowed = config.layers_with_window
    first = windowed.index(True) if any(windowed) else config.num_layers
    used = {"use_sliding_window": any(windowed), "max_window_layers": first}
    return write_windows(config) | used


def read_gemma(theirs: Mapping[str, Any], config: LlamaConfig, every: int) -> dict[str, Any]:
    """Windows of Gemma, in all but every so many layers, and the scale of its embeddings."""
    rule = functools.partial(_gemma_rule, every=every)
    windows = read_windows(theirs, config, rule=rule, absent=4096)
    base = {}
    if every == 6 and windows:
        base["window_rope_base"] = theirs.get("rope_local_base_freq", 10_000.0)
    return {"embedding_scale": config.width**0.5, **windows, **base}


def write_gemma(config: LlamaConfig) -> dict[str, Any]:
    """The inverse of `read_gemma`."""
    scalar = config.head_size if config.query_scalar is None else config.query_scalar
    whole = int(scalar) if float(scalar).is_integer() else scalar  # transformers wants an int
    more: dict[str, Any] = {"query_pre_attn_scalar": whole}
    if config.window_rope_base is not None:
        more["rope_local_base_freq"] = config.window_rope_base
    return write_windows(config) | more


def read_smollm3(theirs: Mapping[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """Which layers of SmolLM3 have no rotary positions, and which a window."""
    rotated = theirs.get("no_rope_layers")
    if rotated is None:
        every = require_integer(
            "no_rope_layer_interval", theirs.get("no_rope_layer_interval", 4), 1
        )
        rotated = [int((i + 1) % every != 0) for i in layer_numbers(config)]
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
    return {"no_rope_layers": still, **read_windows(theirs, config, rule=rule)}


def write_smollm3(config: LlamaConfig) -> dict[str, Any]:
    """The inverse of `read_smollm3`."""
    rotated = [int(i not in config.no_rope_layers) for i in range(config.num_layers)]
    used = {"use_sliding_window": config.window is not None, "no_rope_layers": rotated}
    return write_windows(config) | used
