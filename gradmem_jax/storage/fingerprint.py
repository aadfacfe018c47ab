"""Which model a memory belongs to: hashes of its configuration and of its parameters."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.storage.hashing import hash_bytes
from gradmem_jax.trees import Params, named_leaves


class Fingerprint(NamedTuple):
    """What a memory is tied to. Equal on every device and in every process.

    Attributes:
        config: hash of the fields of the configuration that READ depends on. Fields that say only
            how parameters start or how WRITE runs (K, learning rate, clipping, ...) are left out,
            and so are default values: a field that a later version adds changes no hash.
        weights: hash of names, shapes, dtypes and values of all parameters.
    """

    config: str
    weights: str


def describe_config(model: MemoryModel, *, with_defaults: bool = True) -> dict[str, Any]:
    """Returns the classes and fields of a model's configuration, by dotted name.

    Args:
        model: the model.
        with_defaults: whether fields that have their default value are listed too.
    """

    def fields(prefix: str, config: Any) -> dict[str, Any]:
        found: dict[str, Any] = {prefix + "class": type(config).__name__}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                found |= fields(f"{prefix}{field.name}.", value)
            elif with_defaults or value != field.default:
                found[prefix + field.name] = list(value) if isinstance(value, tuple) else value
        return found

    return {"model": type(model).__name__} | fields("", model.config)


def read_fields(config: Mapping[str, Any], model: MemoryModel) -> dict[str, Any]:
    """The fields of `describe_config` that READ of this model depends on."""
    c = model.config
    left_out = {*c.not_in_read, *(f"lm.{name}" for name in c.lm.not_in_read)}
    return {name: value for name, value in config.items() if name not in left_out}


def take_fingerprint(model: MemoryModel, params: Params) -> Fingerprint:
    """Returns the fingerprint of a model: about a second for each gigabyte of parameters.

    Take it once where memories are saved or loaded often, and pass it on.

    Args:
        model: the model.
        params: its parameters, on the host or on any device.

    Raises:
        ValueError: a field of the configuration is of a type that JSON does not have.
    """
    fields = read_fields(describe_config(model, with_defaults=False), model)
    try:
        config = json.dumps(fields, sort_keys=True)
    except TypeError as error:
        raise ValueError(
            f"{type(model.config.lm).__name__} cannot be stored: {error}. Have the fields of a "
            "configuration be numbers, texts, or tuples of them."
        ) from error
    hashes = []
    for name, leaf in named_leaves(params).items():
        values = np.ascontiguousarray(leaf)
        kind = f"{name} {values.dtype} {values.shape}"
        hashes.append(hash_bytes(kind.encode(), values.reshape(-1).view(np.uint8).data))
    return Fingerprint(
        hash_bytes(config.encode()),
        hash_bytes("".join(hashes).encode()),
    )
