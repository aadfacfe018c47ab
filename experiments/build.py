"""From a ConfigDict to checked objects: the only reader of configuration fields."""

import dataclasses
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from experiments.methods import METHODS
from gradmem_jax.config import require, require_choice
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
from gradmem_jax.freezing import split_params
from gradmem_jax.memory.gradient import GradMem
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.optimizer import OptimizerConfig


class Stage(NamedTuple):
    """One stage of a curriculum.

    Attributes:
        model: the model, with this stage's number of WRITE steps.
        data: the training data.
    """

    model: MemoryModel
    data: KVRetrievalConfig


def build_data(config: ConfigDict, **changes: object) -> KVRetrievalConfig:
    """Returns the training data's configuration; `changes` replace fields."""
    return KVRetrievalConfig(**(config.data.to_dict() | {"seed": config.seed} | changes))


def build_model(config: ConfigDict, **changes: object) -> MemoryModel:
    """Returns the model; `changes` replace fields of its configuration."""
    require_choice("method", config.method, tuple(METHODS))
    method: Any = METHODS[config.method]
    lm = method.lm(vocab_size=build_data(config).vocab_size, **config.lm.to_dict())
    model_config = method.config(lm=lm, **(config.model.to_dict() | changes))
    name = config.write_optimizer.name
    if not name:
        return method.model(model_config)
    require(
        issubclass(method.model, GradMem),
        f"write_optimizer.name={name!r} needs a method that writes by gradient descent, not "
        f"{config.method!r}.",
    )
    make: Any = getattr(optax, name, None)
    require(make is not None, f"write_optimizer.name={name!r} is not in optax.")
    optimizer = make(**config.write_optimizer.arguments.to_dict())
    return method.model(model_config, write_optimizer=optimizer)


def build_optimizer_config(config: ConfigDict) -> OptimizerConfig:
    """Returns the outer optimizer's configuration."""
    return OptimizerConfig(num_steps=config.num_steps, **config.optimizer.to_dict())


def build_stages(config: ConfigDict) -> list[Stage]:
    """Returns the stages of the curriculum, the task itself last.

    Raises:
        ValueError: a field is wrong, or the curriculum does not end at the task.
    """
    model, data = build_model(config), build_data(config)
    for name in ("num_steps", "batch_size", "num_micro_batches", "log_every", "evaluate_every"):
        require(config[name] >= 1, f"{name}={config[name]} must be at least 1.")
    require(config.num_eval_samples >= 1, "num_eval_samples must be at least 1.")
    require(
        config.evaluate_every % config.log_every == 0,
        f"evaluate_every={config.evaluate_every} must be a multiple of log_every="
        f"{config.log_every}: checkpoints are made between log windows.",
    )
    require(
        config.batch_size % config.num_micro_batches == 0,
        f"batch_size={config.batch_size} must be a multiple of num_micro_batches="
        f"{config.num_micro_batches}.",
    )
    if config.frozen:
        split_params(jax.eval_shape(model.init, jax.random.key(0)), config.frozen)
    pairs = config.curriculum.num_pairs
    steps = config.curriculum.num_write_steps or (model.config.num_write_steps,) * len(pairs)
    if not pairs:
        require(not steps, "curriculum.num_write_steps needs curriculum.num_pairs of equal length.")
        return [Stage(model, data)]
    require(
        len(steps) == len(pairs),
        f"curriculum.num_write_steps={steps} and num_pairs={pairs} must have equal length.",
    )
    require(
        (pairs[-1], steps[-1]) == (data.num_pairs, model.config.num_write_steps),
        f"the curriculum ends at num_pairs={pairs[-1]}, num_write_steps={steps[-1]}; its last "
        f"stage must be the task itself, {data.num_pairs} and {model.config.num_write_steps}.",
    )
    queries = lambda n: min(n, data.queries_per_context)
    return [
        Stage(
            build_model(config, num_write_steps=k),
            dataclasses.replace(data, num_pairs=n, queries_per_context=queries(n)),
        )
        for n, k in zip(pairs, steps, strict=True)
    ]
