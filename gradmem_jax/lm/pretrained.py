"""Pretrained language models: read from disk, written to disk."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from gradmem_jax.config import LMConfig, require
from gradmem_jax.data.text_tokenizer import TextTokenizer, load_tokenizer
from gradmem_jax.lm import hugging_face
from gradmem_jax.lm.hugging_face_families import family_of
from gradmem_jax.lm.tensor_layout import Params, StoredTensor, to_params, to_tensors


class Pretrained(NamedTuple):
    """A language model with its weights.

    Attributes:
        config: the model.
        params: its parameters as numpy arrays, the "lm" part of a memory model's parameters.
        tokenizer: its tokenizer, if it came with one.
    """

    config: LMConfig
    params: Params
    tokenizer: TextTokenizer | None = None


def load_pretrained(path: str | pathlib.Path, **changes: Any) -> Pretrained:
    """Reads a pretrained language model.

    Args:
        path: a directory as Hugging Face stores models: `config.json`, `model.safetensors` or
            several files with their index, and `tokenizer.json` or `vocab.json` and `merges.txt`
            if there is a tokenizer. Llama (Llama 3, SmolLM2), GPT-2, GPT-NeoX (Pythia) and Mamba.
        **changes: fields of the configuration to be replaced, such as `dtype`, `param_dtype`,
            `scan_layers`, `remat` or `max_positions`.

    Raises:
        ValueError: a file is missing or damaged, the model is none that can be computed here, or
            its tensors are not those of its configuration. Weights are read last.
    """
    path = pathlib.Path(path)
    require(path.exists(), f"there is no {path}; give the directory or file of a model.")
    return _load_hugging_face(path, changes)


def save_pretrained(directory: str | pathlib.Path, pretrained: Pretrained) -> None:
    """Writes a model as Hugging Face stores it, for `load_pretrained` and `transformers`.

    Args:
        directory: where to; made if missing. Files of a model that is there are overwritten.
        pretrained: the model.

    Raises:
        ValueError: Hugging Face has no such models, or the parameters are not those of the
            configuration.
    """
    config, params, tokenizer = pretrained
    family = family_of(config)
    tensors = to_tensors(params, family.layout, config)
    theirs: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer is not None:
        theirs |= {"eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write = lambda name, content: (directory / name).write_text(json.dumps(content, indent=2))
    write("config.json", hugging_face.write_config(config) | theirs)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(directory / "tokenizer.json")
        names = {"eos_token": tokenizer.end_id, "pad_token": tokenizer.pad_id}
        special = {name: tokenizer.backend.id_to_token(i) for name, i in names.items()}
        write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})


def from_hugging_face(
    tensors: Mapping[str, np.ndarray], config: LMConfig, prefix: str = ""
) -> Params:
    """Converts the tensors of a Hugging Face model to parameters of this library's.

    Args:
        tensors: arrays by their PyTorch names (`model.embed_tokens.weight`, ...); others may be
            among them.
        config: the model they belong to.
        prefix: what stands in front of every name.

    Returns:
        Nested dict of arrays.

    Raises:
        ValueError: a tensor is missing or has another shape than `config` says, or models of this
            kind cannot be converted.
    """
    family = family_of(config)
    stored = {
        name.removeprefix(prefix): StoredTensor(np.shape(x), functools.partial(np.asarray, x))
        for name, x in tensors.items()
        if name.startswith(prefix)
    }
    return to_params(stored, family.layout, config, may_be_left=lambda name: True)


def _load_hugging_face(directory: pathlib.Path, changes: Mapping[str, Any]) -> Pretrained:
    file = directory / "config.json"
    require(file.is_file(), f"{directory} has no config.json; is it the directory of a model?")
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))
        require(isinstance(theirs, dict), "it holds no object")
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    config = _change(hugging_face.read_config(theirs), changes)
    family = family_of(config)
    tensors = hugging_face.full_names(hugging_face.open_tensors(directory), family)
    tokenizer = None
    if any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        tokenizer = load_tokenizer(directory)
    is_buffer = hugging_face.is_buffer
    params = to_params(tensors, family.layout, config, may_be_left=is_buffer)
    return Pretrained(config, params, tokenizer)


def _change(config: LMConfig, changes: Mapping[str, Any]) -> LMConfig:
    fields = [field.name for field in dataclasses.fields(config)]
    unknown = [name for name in changes if name not in fields]
    require(not unknown, f"{unknown} are no fields of {type(config).__name__}; it has {fields}.")
    return dataclasses.replace(config, **changes)
