"""Models to write and ask with: a finished run, or a pretrained language model as it is."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import reporting
from experiments.build import build_model, build_task
from gradmem_jax import checkpoint
from gradmem_jax.config import GradMemConfig, require, require_integer
from gradmem_jax.data.task import Tokenizer
from gradmem_jax.lm.pretrained import load_pretrained
from gradmem_jax.memory.gradient import GradMem
from gradmem_jax.memory.interface import MemoryModel, Params

# What a WRITE of a model that never learned to write is like; see docs/memory_files.md.
PRETRAINED_DEFAULTS = {
    "num_memory_tokens": 8,
    "num_write_steps": 100,
    "write_optimizer": "adam",
    "write_learning_rate": None,
}


class OpenModel(NamedTuple):
    """A model with all that turning text into answers needs.

    Attributes:
        model: the model.
        params: its parameters.
        tokenizer: its tokenizer.
        end_id: the id that ends an answer.
        prompt: from a question to the text that an answer continues.
        notes: what `open_model` needs to open the same model again.
    """

    model: MemoryModel
    params: Params
    tokenizer: Tokenizer
    end_id: int | None
    prompt: Callable[[str], str]
    notes: dict[str, Any]


def open_model(path: str, options: Mapping[str, Any]) -> OpenModel:
    """Opens a model.

    Args:
        path: the folder of a finished run, or what `load_pretrained` reads.
        options: for a run, `checkpoint`; for a pretrained model, fields of `PRETRAINED_DEFAULTS`.
            None stands for a default.

    Raises:
        ValueError: there is no model, or an option is wrong or of the other kind of model.
    """
    given = {name: value for name, value in options.items() if value is not None}
    is_run = (pathlib.Path(path) / "checkpoints").is_dir()
    known = ("checkpoint",) if is_run else tuple(PRETRAINED_DEFAULTS)
    kind = "a finished run" if is_run else "a pretrained language model"
    unknown = [name for name in given if name not in known]
    require(not unknown, f"{path} is {kind}, whose options are {known}; leave out {unknown}.")
    require(pathlib.Path(path).exists(), f"there is no model {path}.")
    absolute = str(pathlib.Path(path).absolute())
    opened = open_run(path, **given) if is_run else open_pretrained(path, **given)
    return opened._replace(notes={"model": absolute, "options": given})


def open_run(workdir: str, checkpoint_name: str = "best") -> OpenModel:
    """Opens a finished run."""
    raise NotImplementedError


def initial_memory(embedding: np.ndarray, num_memory_tokens: int) -> np.ndarray:
    raise NotImplementedError
