"""Models as Hugging Face stores them: config.json and safetensors, both ways."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from gradmem_jax.checks import require, require_instance
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.pretrained.family import NEEDED, Family
from gradmem_jax.lm.pretrained.hugging_face_families import FAMILIES
from gradmem_jax.lm.pretrained.known_keys import refuse_parts, refuse_unknown
from gradmem_jax.lm.pretrained.rope_keys import (
    old_rope_keys,
    read_rope_scaling,
    write_rope_scaling,
)
from gradmem_jax.lm.pretrained.shared_tensors import embedding_of_head, split_fused
from gradmem_jax.lm.pretrained.tensor_layout import StoredModel, StoredTensor
from gradmem_jax.lm.pretrained.wrappers import without_wrappers
from gradmem_jax.storage.arrays_file import open_arrays
from gradmem_jax.storage.reading import read_json
from gradmem_jax.tokenizers.text_tokenizer import HUGGING_FACE, TextTokenizer, load_tokenizer

_BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_NUMBER_TYPES = ("F64", "F32", "F16", "BF16")
MARK = "gradmem_jax_model"  # what config.json and the weights of one model have in common
_TYPES = {"model_type": str, "architectures": list, "rope_scaling": dict, "rope_parameters": dict}
# Fields that config.json does not say, or that a user may change, beside those not of READ.
_UNSAID = ("max_positions", "dtype", "param_dtype", "scan_layers", "matmul_precision")
_ACTUAL = {  # fields that may be None to what they then mean
    "num_kv_heads": "kv_heads",
    "head_width": "head_size",
    "mlp_width": "mlp_size",
    "dt_rank": "time_step_rank",
}


def read_config(theirs: Mapping[str, Any]) -> LMConfig:
    """Translates a config.json.

    Raises:
        ValueError: models of this kind are not known here, a key is missing, or its value asks for
            something that is not computed here.
    """
    for key, kind in _TYPES.items():
        require_instance(f"config.json: {key}", theirs.get(key), kind | None)
    refuse_parts(theirs)
    return _translate(old_rope_keys(theirs), _named_family(theirs))


def _named_family(theirs: Mapping[str, Any]) -> Family:
    by_type = {family.model_type: family for family in FAMILIES}
    architectures = theirs.get("architectures") or []
    family = by_type.get(theirs.get("model_type", ""))
    classes = [] if family is None else [family.architecture, family.base_architecture]
    if family is None or (architectures and not any(name in classes for name in architectures)):
        raise ValueError(
            f"model_type={shown(theirs.get('model_type'))} with architectures="
            f"{shown(architectures)} is not supported; choose one of "
            f"{', '.join(family.architecture for family in FAMILIES)}."
        )
    return family


def _translate(theirs: Mapping[str, Any], family: Family) -> LMConfig:
    """The configuration of a model of one family."""
    problems = [
        f"{key} is missing"
        for key, absent in family.fields.values()
        if absent is NEEDED and key not in theirs
    ]
    problems += [
        f"{key}={shown(theirs.get(key, values[0]))} is not supported, only {values[0]!r}"
        for key, values in {**family.fixed, "quantization_config": (None,)}.items()
        if theirs.get(key, values[0]) not in values
    ]
    require(not problems, f"config.json of a {family.architecture}: {'; '.join(problems)}.")
    keys = [key for key, _ in family.fields.values()]
    rotary = ("rope_scaling", "original_max_position_embeddings") if _can_stretch(family) else ()
    refuse_unknown(theirs, (*keys, *family.fixed, *family.more_keys, *rotary))
    values = {ours: theirs.get(key, absent) for ours, (key, absent) in family.fields.items()}
    if values.get("dt_rank") == "auto":
        values["dt_rank"] = None
    if family.base_architecture in (theirs.get("architectures") or []):
        values["tied_head"] = True
    config = family.config_class(**{**values, **family.implied})
    more = family.read_more(theirs, config)
    if _can_stretch(family):
        more["rope_scaling"] = read_rope_scaling(theirs, config.max_positions)
    return dataclasses.replace(config, **more)


def _can_stretch(family: Family) -> bool:
    return any(field.name == "rope_scaling" for field in dataclasses.fields(family.config_class))


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


def family_of(config: LMConfig) -> Family:
    """Returns the first kind of models of Hugging Face that can say all of a configuration.

    Raises:
        ValueError: none can.
    """
    same_class = [family for family in FAMILIES if type(config) is family.config_class]
    known = sorted({family.config_class.__name__ for family in FAMILIES})
    require(
        same_class != [],
        f"a {type(config).__name__} cannot be read from or written to a Hugging Face checkpoint; "
        f"only {known} can.",
    )
    for family in same_class:
        if _says_all(family, config):
            return family
    raise ValueError(
        f"no kind of models of Hugging Face has all that this {type(config).__name__} has; known "
        f"are {', '.join(family.model_type for family in same_class)}."
    )


def _says_all(family: Family, config: LMConfig) -> bool:
    """Whether a configuration comes back from the config.json of a family."""
    try:
        again = _translate(_written(family, config), family)
    except ValueError:
        return False
    unsaid = {name: getattr(config, name) for name in (*_UNSAID, *config.not_in_read)}
    sizes = {
        ours: getattr(config, ours)
        for ours in _ACTUAL
        if hasattr(config, ours) and _actual(config, ours) == _actual(again, ours)
    }
    one, two = (getattr(x, "rope_scaling", None) for x in (config, again))
    if one is not None and two is not None and write_rope_scaling(one) == write_rope_scaling(two):
        sizes["rope_scaling"] = one
    return dataclasses.replace(again, **unsaid, **sizes) == config


def write_config(config: LMConfig) -> dict[str, Any]:
    """Makes the config.json of a configuration: the inverse of `read_config`."""
    family = family_of(config)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": config.param_dtype,
        **_written(family, config),
    }


def _actual(config: LMConfig, field: str) -> Any:
    """What a field means, None too."""
    return getattr(config, _ACTUAL.get(field, field), getattr(config, field))


def _written(family: Family, config: LMConfig) -> dict[str, Any]:
    """What config.json says of a configuration, if the family can say it."""
    values = {key: _actual(config, ours) for ours, (key, _) in family.fields.items()}
    fixed = {key: allowed[0] for key, allowed in family.fixed.items() if allowed[0] is not None}
    values = fixed | values
    scaling = getattr(config, "rope_scaling", None)
    if _can_stretch(family):
        values["rope_scaling"] = None if scaling is None else write_rope_scaling(scaling)
    if scaling is not None and scaling.kind == "dynamic":  # transformers knows it by this key only
        values["max_position_embeddings"] = scaling.original_positions
    if scaling is not None and scaling.kind == "longrope":  # transformers 4 looks nowhere else
        values["original_max_position_embeddings"] = scaling.original_positions
    return values | family.write_more(config)


def open_hugging_face(directory: pathlib.Path) -> StoredModel:
    """Opens a directory with config.json, safetensors and perhaps a tokenizer.

    Raises:
        ValueError: files are missing or damaged, or the model is none that is known here.
    """
    theirs = _read_config_json(directory / "config.json")
    config = read_config(theirs)
    family = _named_family(theirs)
    tensors = _full_names(_open_tensors(directory, theirs.get(MARK)), family)
    tensors = embedding_of_head(tensors, family.layout, config)
    tensors = split_fused(tensors, family.fused, family.layout, config)
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
    index = directory / INDEX
    places = _read_index(index) if os.path.lexists(index) else None
    names = [WEIGHTS] if places is None else sorted(set(places.values()))
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


def files_of_index(index: pathlib.Path) -> list[str]:
    """Names of the files of weights that an index has, all of them in its folder.

    Raises:
        ValueError: it is damaged, or names files elsewhere.
    """
    return sorted(set(_read_index(index).values()))


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
