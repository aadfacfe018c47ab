"""The task and the model that a configuration describes."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from gradmem_jax.checks import require, require_choice, require_integer
from gradmem_jax.data.task import Task
from gradmem_jax.data.tasks import TASKS
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.lm.armt import AssociativeConfig, associative_config
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.pretrained import load
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.methods import BY_GRADIENT, METHODS


def build_task(config: ConfigDict) -> Task:
    """Returns the task."""
    require_choice("task", config.task, tuple(TASKS))
    require_integer("seed", config.seed, 0)
    task_class: Any = TASKS[config.task]
    known = {field.name for field in dataclasses.fields(task_class)}
    fields = config.data.to_dict()
    if "seed" in known:
        fields["seed"] = config.seed
    if config.pretrained and "tokenizer_path" in known and not fields.get("tokenizer_path"):
        fields["tokenizer_path"] = config.pretrained
    foreign = sorted(fields.keys() - known)
    require(
        not foreign,
        f"task {config.task!r} has no field data.{', data.'.join(foreign)}, only "
        f"{', '.join(sorted(known))}; a run of another version of the code needs that version.",
    )
    return task_class(**fields)


def build_model(config: ConfigDict, task: Task) -> MemoryModel:
    """Returns the model for a task."""
    require_choice("method", config.method, tuple(METHODS))
    method: Any = METHODS[config.method]
    fields = config.model.to_dict() | {"pad_id": task.pad_id}
    _require_known(config.method, "model", fields, method.config)
    model_config = method.config(lm=_build_lm(config, task), **fields)
    name = config.write_optimizer.name
    if not name:
        return method.model(model_config)
    require(
        config.method in BY_GRADIENT,
        f"write_optimizer.name={name!r} needs a method that writes by gradient descent, not "
        f"{config.method!r}.",
    )
    optimizer = _build_write_optimizer(str(name), config.write_optimizer.arguments.to_dict())
    return method.model(model_config, write_optimizer=optimizer)


def _build_lm(config: ConfigDict, task: Task) -> LMConfig:
    """The language model's configuration: the pretrained one's, or that of config.lm."""
    method, path = METHODS[config.method], config.pretrained
    if not path:
        _require_known(config.method, "lm", config.lm, method.lm)
        return method.lm(vocab_size=task.vocab_size, **config.lm.to_dict())
    lm: Any = load.load_config(path, **config.lm.to_dict())
    require(
        isinstance(lm, method.pretrained_lm),
        f"method={config.method!r} needs a {method.pretrained_lm.__name__}; pretrained="
        f"{path!r} is a {type(lm).__name__}.",
    )
    require(
        task.vocab_size <= lm.vocab_size,
        f"the tokenizer has {task.vocab_size} ids, pretrained={path!r} has "
        f"{lm.vocab_size}; leave data.tokenizer_path empty to use the model's own.",
    )
    return associative_config(lm) if method.lm is AssociativeConfig else lm


def _require_known(method: str, group: str, fields: Iterable[str], config_class: type) -> None:
    """Refuses fields of a group of the configuration that the method's class does not have."""
    known = {field.name for field in dataclasses.fields(config_class)}
    foreign = sorted(set(fields) - known)
    require(
        not foreign,
        f"method={method!r} has no {', '.join(f'{group}.{name}' for name in foreign[:3])}"
        f"{', ...' if foreign[3:] else ''}; start from a configuration of that method, such as "
        f"--config=experiments/configs/kv_quick.py:{method}. A run of another version of the code "
        "needs that version.",
    )


def _build_write_optimizer(name: str, arguments: dict[str, Any]) -> optax.GradientTransformation:
    """Makes an optimizer of optax, or refuses its name or arguments."""
    known = name.isidentifier() and not name.startswith("_")
    make: Any = getattr(optax, name, None) if known else None
    require(callable(make), f"write_optimizer.name={shown(name)} is not in optax.")
    try:
        optimizer = make(**arguments)
        if isinstance(optimizer, optax.GradientTransformation):
            jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), np.zeros(1))
    except Exception as error:  # whatever optax makes of them
        raise ValueError(
            f"write_optimizer.arguments={shown(arguments)} do not fit optax.{name}: "
            f"{one_line(str(error), 300)}. Give them as in "
            "\"--config.write_optimizer.arguments={'learning_rate': 0.1}\"."
        ) from error
    require(
        isinstance(optimizer, optax.GradientTransformation),
        f"write_optimizer.name={name!r} is no optimizer; name one of optax such as 'adam'.",
    )
    return optimizer
