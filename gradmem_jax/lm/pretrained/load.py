"""Pretrained language models: read from disk or a hub, written to disk."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from gradmem_jax.checks import require, require_instance, require_path
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.pretrained.fetch import local_config, local_model
from gradmem_jax.lm.pretrained.gguf_file import open_gguf
from gradmem_jax.lm.pretrained.hugging_face import (
    INDEX,
    MARK,
    WEIGHTS,
    family_of,
    open_hugging_face,
    read_config_file,
    write_config,
)
from gradmem_jax.lm.pretrained.llama2c import open_llama2c
from gradmem_jax.lm.pretrained.shared_tensors import embedding_of_head, join_fused, split_fused
from gradmem_jax.lm.pretrained.tensor_layout import (
    StoredModel,
    StoredTensor,
    first_positions,
    tensor_shapes,
    to_params,
    to_tensors,
)
from gradmem_jax.storage.arrays_file import arrays_writer
from gradmem_jax.storage.hashing import hash_arrays
from gradmem_jax.storage.writing import Writer, write_files
from gradmem_jax.tokenizers.fetch import TOKENIZER_FILES
from gradmem_jax.tokenizers.files import UnknownTokenizerError
from gradmem_jax.tokenizers.gguf_reader import first_parts
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer, load_tokenizer
from gradmem_jax.trees import Params


class Pretrained(NamedTuple):
    """A language model with its weights.

    Attributes:
        config: the model.
        params: its parameters as numpy arrays, the "lm" part of a memory model's parameters.
        tokenizer: its tokenizer, if it came with one.

    Examples:
        >>> pretrained = gradmem_jax.Pretrained(small, params["lm"])
        >>> pretrained.config.vocab_size, pretrained.tokenizer is None
        (10, True)
    """

    config: LMConfig
    params: Params
    tokenizer: TextTokenizer | None = None


def load_pretrained(
    path: str | pathlib.Path,
    *,
    tokenizer: str | pathlib.Path | None = None,
    pad_token: str = "",
    **changes: Any,
) -> Pretrained:
    """Reads a pretrained language model.

    Args:
        path: one of
            a directory as Hugging Face stores models: `config.json`, `model.safetensors` or
            several files with their index, and a tokenizer if there is one, see `load_tokenizer`;
            docs/library.md has a table of the families;
            a `.gguf` file with a Llama or a relative, or a directory with exactly one;
            a `.bin` file of llama2.c's first format, with its tokenizer `tok*.bin` beside it;
            where there is no such path, a name on the hub of Hugging Face, `org/name` or
            `org/name/file.gguf`, perhaps with `@revision`: the package `huggingface_hub` fetches
            what is needed.
        tokenizer: where the tokenizer is, if it is elsewhere; see `load_tokenizer`. Without it a
            model whose own tokenizer is of a kind that is not known comes without one, and a
            warning says so.
        pad_token: what fills contexts, see `load_tokenizer`.
        **changes: fields of the configuration to be replaced, such as `dtype`, `param_dtype`,
            `scan_layers`, `remat` or `max_positions`; of learned positions the first ones remain.

    Weights are rounded to `param_dtype`, float32 by default, those of 64 bits too.

    Raises:
        ValueError: a file is missing or damaged, the model is none that can be computed here, or
            its tensors are not those of its configuration, not finite, or too large for
            `param_dtype`. Weights are read last.

    Examples:
        >>> gradmem_jax.save_pretrained("my_lm", gradmem_jax.Pretrained(small, params["lm"]))
        >>> loaded = gradmem_jax.load_pretrained("my_lm", max_positions=64)
        >>> config = gradmem_jax.GradMemConfig(lm=loaded.config, num_memory_tokens=2)
        >>> writer_params = gradmem_jax.GradMem(config).init(jax.random.key(0), loaded.params)
    """
    stored = _open(local_model(require_path("path", path), with_tokenizer=tokenizer is None))
    config = _change(stored.config, changes)
    text_tokenizer = _own(stored) if tokenizer is None else load_tokenizer(tokenizer)
    if text_tokenizer is not None:
        text_tokenizer = text_tokenizer.fitting(config.vocab_size)
        text_tokenizer = text_tokenizer.with_padding(pad_token) if pad_token else text_tokenizer
    num_ids = 0 if text_tokenizer is None else text_tokenizer.vocab_size
    require(
        num_ids <= config.vocab_size,
        f"the tokenizer has {num_ids} ids, the model {config.vocab_size}; they do not belong "
        "together: name the model's tokenizer by tokenizer=.",
    )
    tensors = first_positions(stored, config.max_positions)
    return Pretrained(config, to_params(tensors, stored.layout, config), text_tokenizer)


def _own(stored: StoredModel) -> TextTokenizer | None:
    """The tokenizer that a model comes with."""
    try:
        return stored.read_tokenizer()
    except UnknownTokenizerError as error:
        logging.warning("%s", error)
        return None


def load_config(path: str | pathlib.Path, **changes: Any) -> LMConfig:
    """Reads the configuration only, as `load_pretrained` does; config.json needs no weights.

    Examples:
        >>> gradmem_jax.save_pretrained("my_lm", gradmem_jax.Pretrained(small, params["lm"]))
        >>> gradmem_jax.load_config("my_lm", dtype="bfloat16").width
        8
    """
    path = _find(local_config(require_path("path", path)))
    config = read_config_file(path / "config.json") if path.is_dir() else _open(path).config
    return _change(config, changes)


def save_pretrained(directory: str | pathlib.Path, pretrained: Pretrained) -> None:
    """Writes a model as Hugging Face stores it, for `load_pretrained` and `transformers`.

    Args:
        directory: where to; made if missing. Files of a model that is there are overwritten, and
            those of its tokenizer removed.
        pretrained: the model.

    Raises:
        ValueError: Hugging Face has no such models, or the parameters are not those of the
            configuration.

    Examples:
        >>> gradmem_jax.save_pretrained("my_lm", gradmem_jax.Pretrained(small, params["lm"]))
        >>> sorted(os.listdir("my_lm"))
        ['config.json', 'model.safetensors']
    """
    directory = require_path("directory", directory)
    require_instance("pretrained", pretrained, Pretrained)
    config, params, tokenizer = pretrained
    family = family_of(config)
    tensors = to_tensors(params, family.layout, config)
    tensors = join_fused(tensors, family.fused, family.layout, config)
    theirs: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer is not None:
        theirs |= {"eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}
        theirs["bos_token_id"] = tokenizer.begin_id
    theirs = write_config(config) | theirs
    mark = {MARK: hash_arrays(json.dumps(theirs, sort_keys=True), tensors)}
    writers = {WEIGHTS: arrays_writer(tensors, {"format": "pt"} | mark)}
    if tokenizer is not None:
        writers["tokenizer.json"] = tokenizer.save
        writers["tokenizer_config.json"] = _json_writer(tokenizer.config)
    writers["config.json"] = _json_writer(theirs | mark)
    older = {INDEX, *TOKENIZER_FILES} - writers.keys()
    write_files(directory, writers, remove=sorted(older))


def _json_writer(content: dict[str, Any]) -> Writer:
    text = json.dumps(content, indent=2)
    return lambda path: path.write_text(text, encoding="utf-8")


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
        name.removeprefix(prefix): StoredTensor(np.shape(x), partial(np.asarray, x))
        for name, x in tensors.items()
        if name.startswith(prefix)
    }
    stored = embedding_of_head(stored, family.layout, config)
    stored = split_fused(stored, family.fused, family.layout, config)
    known = tensor_shapes(family.layout, config)
    stored = {name: x for name, x in stored.items() if name in known}
    return to_params(stored, family.layout, config)


def _find(path: pathlib.Path) -> pathlib.Path:
    """Returns a directory with a config.json, or the file that is the model."""
    require(os.path.exists(path), f"there is no {path}; give the directory or file of a model.")
    if path.is_dir() and not (path / "config.json").is_file():
        files = first_parts(path.glob("*.gguf"))
        require(
            len(files) == 1,
            f"{path} has no config.json and {len(files)} .gguf files; it must have a config.json "
            "or one .gguf file, or name a file, .gguf or .bin.",
        )
        (path,) = files
    return path


def _open(path: pathlib.Path) -> StoredModel:
    path = _find(path)
    if path.is_dir():
        return open_hugging_face(path)
    if path.suffix == ".gguf":
        return open_gguf(path)
    return open_llama2c(path)


def _change(config: LMConfig, changes: Mapping[str, Any]) -> LMConfig:
    fields = [field.name for field in dataclasses.fields(config)]
    unknown = [name for name in changes if name not in fields]
    require(not unknown, f"{unknown} are no fields of {type(config).__name__}; it has {fields}.")
    return dataclasses.replace(config, **changes)
