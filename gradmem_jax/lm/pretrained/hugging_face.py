"""Models as Hugging Face stores them: config.json and safetensors, both ways."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open

from gradmem_jax.checks import require, require_instance
from gradmem_jax.lm.attention import RopeScaling
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.pretrained.hugging_face_families import FAMILIES, NEEDED, Family, family_of
from gradmem_jax.lm.pretrained.tensor_layout import StoredModel, StoredTensor
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer, load_tokenizer

_BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
_TYPES = {"model_type": str, "architectures": list, "rope_scaling": dict, "rope_parameters": dict}
_ROPE_SCALING_KEYS = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}


def read_config(theirs: Mapping[str, Any]) -> LMConfig:
    """Translates a config.json.

    Raises:
        ValueError: models of this kind are not known here, a key is missing, or its value asks for
            something that is not computed here.
    """
    for key, kind in _TYPES.items():
        require_instance(f"config.json: {key}", theirs.get(key), kind | None)
    theirs = _old_rope_keys(theirs)
    by_type = {family.model_type: family for family in FAMILIES}
    architectures = theirs.get("architectures") or []
    family = by_type.get(theirs.get("model_type", ""))
    if family is None or (architectures and family.architecture not in architectures):
        raise ValueError(
            f"model_type={theirs.get('model_type')!r} with architectures={architectures} is not "
            f"supported; choose one of {[family.architecture for family in FAMILIES]}."
        )
    problems = [
        f"{key} is missing"
        for key, absent in family.fields.values()
        if absent is NEEDED and key not in theirs
    ]
    problems += [
        f"{key}={theirs.get(key, values[0])!r} is not supported, only {values[0]!r}"
        for key, values in {**family.fixed, "quantization_config": (None,)}.items()
        if theirs.get(key, values[0]) not in values
    ]
    require(not problems, f"config.json of a {family.architecture}: {'; '.join(problems)}.")
    values = {ours: theirs.get(key, absent) for ours, (key, absent) in family.fields.items()}
    if "rope_scaling" in values:
        values["rope_scaling"] = _read_rope_scaling(values["rope_scaling"])
    if values.get("dt_rank") == "auto":
        values["dt_rank"] = None
    return family.config_class(**values)


def read_config_file(file: pathlib.Path) -> LMConfig:
    """Reads a config.json.

    Raises:
        ValueError: it is damaged, or says what `read_config` refuses.
    """
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))
        require(isinstance(theirs, dict), "it holds no object")
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    require(
        "model_type" in theirs,
        f"{file} has no model_type: it is not that of a language model of Hugging Face's.",
    )
    return read_config(theirs)


def write_config(config: LMConfig) -> dict[str, Any]:
    """Makes the config.json of a configuration: the inverse of `read_config`."""
    family = family_of(config)
    actual = {"num_kv_heads": "kv_heads", "head_width": "head_size", "mlp_width": "mlp_size"}
    actual["dt_rank"] = "time_step_rank"
    values = {
        key: getattr(config, actual.get(ours, ours)) for ours, (key, _) in family.fields.items()
    }
    if values.get("rope_scaling") is not None:
        values["rope_scaling"] = _write_rope_scaling(values["rope_scaling"])
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": config.param_dtype,
        **{key: allowed[0] for key, allowed in family.fixed.items()},
        **values,
    }


def open_hugging_face(directory: pathlib.Path) -> StoredModel:
    """Opens a directory with config.json, safetensors and perhaps a tokenizer.

    Raises:
        ValueError: files are missing or damaged, or the model is none that is known here.
    """
    config = read_config_file(directory / "config.json")
    family = family_of(config)
    tensors = _full_names(_open_tensors(directory), family)
    has_tokenizer = any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json"))

    def read_tokenizer() -> TextTokenizer | None:
        return load_tokenizer(directory) if has_tokenizer else None

    return StoredModel(config, family.layout, tensors, read_tokenizer)


def _open_tensors(directory: pathlib.Path) -> dict[str, StoredTensor]:
    """Opens the safetensors of a directory, which may be in several files."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            require(all(isinstance(name, str) for name in names), "a name of a file is no text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is damaged: {error!r}.") from error
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (directory / name).is_file()]
    require(
        not missing,
        f"{directory} lacks {', '.join(missing)}; weights are read from safetensors only (in "
        "transformers, save_pretrained writes them).",
    )
    tensors = {}
    for name in names:
        try:
            file = safe_open(directory / name, "np")
        except SafetensorError as error:
            raise ValueError(f"{directory / name} is damaged or cut short: {error}.") from error
        for key in file.keys():  # noqa: SIM118, it is no dict
            shape = tuple(file.get_slice(key).get_shape())
            tensors[key] = StoredTensor(shape, functools.partial(file.get_tensor, key))
    return tensors


def _full_names(tensors: Mapping[str, StoredTensor], family: Family) -> dict[str, StoredTensor]:
    """Tensors by the names of the layout, without the constants that old versions saved too.

    The files of GPT-2 leave the base's name out, those of Mamba say `embedding` for `embeddings`.
    """
    heads = {name for name in family.layout if not name.startswith(family.base)}
    has_base = any(name.startswith(family.base) for name in tensors)

    def full_name(name: str) -> str:
        return name if has_base or name in heads else family.base + name

    return {
        full_name(name).replace("backbone.embedding.", "backbone.embeddings."): tensor
        for name, tensor in tensors.items()
        if not _BUFFERS.search(name)
    }


def _old_rope_keys(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the rotary keys of transformers 4, which transformers 5 has in a group."""
    group = dict(theirs.get("rope_parameters") or {})
    if not group:
        return dict(theirs)
    old = {key: group.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in group}
    if theirs.get("model_type") == "gpt_neox":
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        old = {names[key]: value for key, value in old.items()}
    scaling = None if group.get("rope_type", "default") == "default" else group
    return {**theirs, **old, "rope_scaling": scaling}


def _read_rope_scaling(theirs: Mapping[str, Any] | None) -> RopeScaling | None:
    if theirs is None:
        return None
    kind = theirs.get("rope_type", theirs.get("type"))
    if kind == "default":
        return None
    require(
        kind in ("linear", "llama3"),
        f"rope_scaling of type {kind!r} is not supported, only 'linear' and 'llama3'.",
    )
    names = _ROPE_SCALING_KEYS if kind == "llama3" else {"factor": "factor"}
    missing = [key for key in names.values() if key not in theirs]
    require(not missing, f"rope_scaling of type {kind!r} lacks {missing}.")
    return RopeScaling(kind=kind, **{ours: theirs[key] for ours, key in names.items()})


def _write_rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    values = dataclasses.asdict(scaling)
    names = _ROPE_SCALING_KEYS if scaling.kind == "llama3" else {"factor": "factor"}
    return {"rope_type": scaling.kind, **{key: values[ours] for ours, key in names.items()}}
