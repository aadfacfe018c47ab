"""Sizes in the configuration of a run, held against the parameters that are stored with it.

A configuration of a few bytes may ask for a model that no machine holds, or that takes a year to
trace. What a run has stored is as large as its files.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.memory.interface import MemoryConfig

Shapes = Mapping[str, tuple[int, ...]]  # of stored parameters, by name

MOST_STEPS = 10_000  # of one WRITE
MOST_TOKENS = 2**22  # of a context
_MOST_REPEATED = 3
_SMALL = 2**16  # a size, such as a chunk's, that no machine minds
_NO_LENGTHS = ("data.seed", "data.num_samples", "data.max_characters")  # of a context
_NO_SIZES = ("max_positions", "pad_id")  # nothing is made of them


def check_model(config: MemoryConfig, stored: Shapes) -> None:
    """Refuses a model that is larger than the stored parameters, before it is traced.

    Args:
        config: of the model.
        stored: the parameters that belong to it.

    Raises:
        ValueError: a size is larger than all of them have together, there are more layers, or a
            WRITE takes too long.
    """
    total = sum(map(math.prod, stored.values()))
    for name, value in _integers(config, ""):
        if name.endswith("_steps"):
            require(
                value <= MOST_STEPS,
                f"{name}={value} is more than the {MOST_STEPS} steps that a WRITE of a stored run "
                "may take; correct it in config.json.",
            )
        else:
            require(
                value <= max(total, _SMALL) or name.rpartition(".")[2] in _NO_SIZES,
                f"{name}={value} does not fit the stored parameters, which have {total} numbers in "
                "all; config.json is that of another run, or damaged.",
            )
    layers = _num_layers(stored)
    require(
        config.lm.num_layers == layers,
        f"lm.num_layers={config.lm.num_layers} does not fit the stored parameters, which have "
        f"{layers} layers; config.json is that of another run, or damaged.",
    )


def check_task(task: Any) -> None:
    """Refuses a task whose contexts are too long, before one is made."""
    for name, value in _integers(task, "data."):
        require(
            value <= MOST_TOKENS or name in _NO_LENGTHS,
            f"{name}={value} is more than {MOST_TOKENS}, the tokens that a context of a stored run "
            "may have; correct it in config.json.",
        )
    length = getattr(task, "context_length", 0) * task.num_segments
    require(
        length <= MOST_TOKENS,
        f"contexts of data={shown_fields(task)} have {length} tokens, more than the {MOST_TOKENS} "
        "that those of a stored run may have; correct it in config.json.",
    )


def check_patterns(frozen: Sequence[str]) -> None:
    """Refuses regular expressions that may take for ever: a repeated group, or much repeated."""
    for pattern in frozen:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"frozen {shown(pattern)} is no regular expression: {error}."
            ) from error
        repeated = len(re.findall(r"[*+{]", pattern))
        require(
            repeated <= _MOST_REPEATED and re.search(r"\)[*+{]", pattern) is None,
            f"frozen {shown(pattern)} repeats a group, or repeats more than {_MOST_REPEATED} "
            "times, and might take for ever; correct it in config.json.",
        )


def shown_fields(task: Any) -> str:
    """The numbers of a task, as messages show them."""
    return ", ".join(f"{name.removeprefix('data.')}={x}" for name, x in _integers(task, "data."))


def _integers(config: Any, prefix: str) -> Iterator[tuple[str, int]]:
    """The whole numbers in a dataclass, and in those that it holds, by name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) is int:
            yield prefix + field.name, value
        elif dataclasses.is_dataclass(value):
            yield from _integers(value, f"{prefix}{field.name}.")


def _num_layers(stored: Shapes) -> int:
    """How many layers stored parameters are of: each has a name, or they are stacked."""
    parts = {name: name.split("/") for name in stored}
    apart = {
        part for path in parts.values() for part in path if re.fullmatch(r"layers_[0-9]+", part)
    }
    stacked = [stored[name][0] for name, path in parts.items() if "layers" in path and stored[name]]
    return max([len(apart), *stacked])
