"""Models as Hugging Face stores them: config.json and safetensors, both ways."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from gradmem_jax.checks import require, require_instance
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.lm.attention import RopeScaling
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.pretrained.hugging_face_families import FAMILIES, NEEDED, Family, family_of
from gradmem_jax.lm.pretrained.tensor_layout import StoredModel, StoredTensor
from gradmem_jax.lm.pretrained.wrappers import without_wrappers
from gradmem_jax.storage.arrays_file import open_arrays
from gradmem_jax.storage.reading import read_json
from gradmem_jax.tokenizers.text_tokenizer import HUGGING_FACE, TextTokenizer, load_tokenizer

_BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
_NUMBER_TYPES = ("F64", "F32", "F16", "BF16")
MARK = "gradmem_jax_model"  # what config.json and the weights of one model have in common
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
    return read_config(_read_config_json(file))


def _read_config_json(file: pathlib.Path) -> dict[str, Any]:
    theirs = read_json(file, "configuration of a language model")
    require(isinstance(theirs, dict), f"{file} is damaged: it holds no object.")
    require(
        "model_type" in theirs,
        f"{file} has no model_type: it is not that of a language model of Hugging Face's.",
    )
    return theirs


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
    theirs = _read_config_json(directory / "config.json")
    config = read_config(theirs)
    family = family_of(config)
    tensors = _full_names(_open_tensors(directory, theirs.get(MARK)), family)
    has_tokenizer = any(os.path.lexists(directory / name) for name in HUGGING_FACE)

    def read_tokenizer() -> TextTokenizer | None:
        return load_tokenizer(directory) if has_tokenizer else None

    return StoredModel(config, family.layout, tensors, read_tokenizer)


def _open_tensors(directory: pathlib.Path, mark: Any) -> dict[str, StoredTensor]:
    """Opens the safetensors of a directory, which may be in several files.

    Args:
        directory: where they are.
        mark: of the model that config.json is of, or None.
    """
    index = directory / "model.safetensors.index.json"
    places = _read_index(index) if os.path.lexists(index) else None
    names = ["model.safetensors"] if places is None else sorted(set(places.values()))
    missing = [name for name in names if not os.path.lexists(directory / name)]
    require(
        not missing,
        f"{directory} lacks {one_line(', '.join(missing), 200)}; weights are read from safetensors "
        "only (in transformers, save_pretrained writes them).",
    )
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        file = open_arrays(directory / name, "file of weights")
        keys = list(file.keys())
        found = (file.metadata() or {}).get(MARK)
        require(
            mark is None or found in (None, mark),
            f"{directory / name} and config.json are of different models: their {MARK} differs; "
            "copy all files of one model.",
        )
        if places is not None:
            listed = {key for key, place in places.items() if place == name}
            wrong = sorted(listed.symmetric_difference(keys))
            require(
                not wrong,
                f"{index} does not fit {name}: only one of them has the tensors {shown(wrong)}; "
                "get both again.",
            )
        tensors |= {key: _stored_tensor(file, key) for key in keys}
    return without_wrappers(tensors)


def _read_index(index: pathlib.Path) -> dict[str, str]:
    """The file of each tensor, by the name of the tensor."""
    content = read_json(index, "index of weights")
    places: Any = content.get("weight_map") if isinstance(content, dict) else None
    require(
        isinstance(places, dict) and all(isinstance(name, str) for name in places.values()),
        f"{index} is damaged: weight_map must map names of tensors to names of files.",
    )
    strange = sorted(
        {name for name in places.values() if name in ("", ".", "..") or {*"/\\\0"} & {*name}}
    )
    require(
        not strange,
        f"{index} names {shown(strange)}; the files of a model must be in its folder.",
    )
    return places


def _stored_tensor(file: Any, name: str) -> StoredTensor:
    found = file.get_slice(name)
    number_type = found.get_dtype()

    def read() -> Any:
        require(
            number_type in _NUMBER_TYPES,
            f"the tensor {name!r} is of type {number_type}; weights must be floating-point "
            f"numbers of type {', '.join(_NUMBER_TYPES)}.",
        )
        return file.get_tensor(name)

    return StoredTensor(tuple(found.get_shape()), read)


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
