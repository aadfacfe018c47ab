"""The stages of a run: the task in growing sizes, the task itself last."""

import dataclasses
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments.run.build import BEST_METRICS, build_model, build_optimizer_config, build_task
from gradmem_jax.checks import (
    AUTOMATIC,
    require,
    require_choice,
    require_count,
    require_instance,
    require_integer,
    require_number,
)
from gradmem_jax.data.task import Task
from gradmem_jax.data.tasks import size_name
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.trees import split_params

CURRICULUM_SIZES = ("num_pairs", "max_context_tokens")


class Stage(NamedTuple):
    """One stage of a curriculum.

    Attributes:
        model: the model, with this stage's number of WRITE steps.
        task: the task.
        name: what progress lines call it.
    """

    model: MemoryModel
    task: Task
    name: str


def build_stages(config: ConfigDict) -> list[Stage]:
    """Returns the stages of the curriculum, the task itself last.

    Raises:
        ValueError: a field is wrong, or the curriculum does not end at the task.
    """
    _check_run(config)
    build_optimizer_config(config)
    model, task = build_model(config), build_task(config)
    require_choice("best_metric", config.best_metric, BEST_METRICS)
    require(
        config.evaluate_every % config.log_every == 0,
        f"evaluate_every={config.evaluate_every} must be a multiple of log_every="
        f"{config.log_every}: checkpoints are made between log windows.",
    )
    require(
        config.num_micro_batches == AUTOMATIC or config.batch_size % config.num_micro_batches == 0,
        f"batch_size={config.batch_size} must be a multiple of num_micro_batches="
        f"{config.num_micro_batches}.",
    )
    if config.frozen:
        split_params(jax.eval_shape(lambda: model.init(jax.random.key(0))), config.frozen)
    sizes, steps = _curriculum(config, model, task)
    if not sizes:
        return [Stage(model, task, _stage_name(config, model, task))]
    stages = []
    for size, k in zip(sizes, steps, strict=True):
        stage_model = build_model(config, num_write_steps=k)
        stages.append(Stage(stage_model, size, _stage_name(config, stage_model, size)))
    return stages


def _curriculum(config: ConfigDict, model: MemoryModel, task: Any) -> tuple[list[Any], list[int]]:
    """Returns the task in the size of every stage, and its WRITE steps; empty: no curriculum.

    Raises:
        ValueError: two kinds of sizes, sizes that the task does not have, lists of different
            length, or a curriculum that does not end at the task.
    """
    c, own_steps = config.curriculum, model.config.num_write_steps
    given = [name for name in CURRICULUM_SIZES if c[name]]
    if not given:
        require(
            not c.num_write_steps,
            f"curriculum.num_write_steps needs one of {CURRICULUM_SIZES} of equal length.",
        )
        return [], []
    require(
        len(given) == 1, f"curriculum.{given[0]} and curriculum.{given[-1]} exclude each other."
    )
    name, sizes = given[0], list(c[given[0]])
    require(
        hasattr(task, name),
        f"curriculum.{name}={tuple(sizes)} must be empty: task {config.task!r} has no {name}.",
    )
    steps = list(c.num_write_steps) or [own_steps] * len(sizes)
    require(
        len(steps) == len(sizes),
        f"curriculum.num_write_steps={tuple(steps)} and {name}={tuple(sizes)} must have equal "
        "length.",
    )
    last = getattr(task, name) or 0
    require(
        (sizes[-1], steps[-1]) == (last, own_steps),
        f"the curriculum ends at {name}={sizes[-1]}, num_write_steps={steps[-1]}; its last "
        f"stage must be the task itself, {last} and {own_steps}.",
    )
    return [resize(task, name, size) for size in sizes], steps


def resize(task: Any, name: str, size: int) -> Any:
    """The task in another size.

    Args:
        task: the task.
        name: its field, one of `CURRICULUM_SIZES`.
        size: the field's value; 0 max_context_tokens are any number.
    """
    if name == "max_context_tokens":
        return dataclasses.replace(task, max_context_tokens=size or None, long_contexts="skip")
    queries = min(size, task.queries_per_context)
    return dataclasses.replace(task, num_pairs=size, queries_per_context=queries)


def _check_run(config: ConfigDict) -> None:
    """Refuses fields of a run that belong to no dataclass."""
    for name in ("num_steps", "batch_size", "log_every", "evaluate_every", "num_eval_samples"):
        require_integer(name, config[name], 1)
    for name in ("num_micro_batches", "cpu_devices"):
        require_count(name, config[name])
    require_integer("skip_nonfinite", config.skip_nonfinite, 0)
    shares = {
        "stop_at_exact_match": config.stop_at_exact_match,
        "curriculum.exact_match": config.curriculum.exact_match,
    }
    for name, share in shares.items():
        if share is not None:
            require_number(name, share)
            require(0 <= share <= 1, f"{name}={share} must be in [0, 1].")
    minima = {
        "final_num_write_steps": (config.final_num_write_steps, 0),
        "curriculum.num_pairs": (config.curriculum.num_pairs, 1),
        "curriculum.max_context_tokens": (config.curriculum.max_context_tokens, 0),
        "curriculum.num_write_steps": (config.curriculum.num_write_steps, 0),
    }
    for name, (numbers, minimum) in minima.items():
        require_instance(name, numbers, tuple | list)
        for number in numbers:
            require_integer(name, number, minimum)
    require_instance("frozen", config.frozen, tuple[str, ...])
    for name in ("pretrained", "init_from", "init_checkpoint", "final_split"):
        require_instance(name, config[name], str)
    require_instance("shuffle", config.shuffle, bool)


def task_name(config: ConfigDict, task: Any) -> str:
    """Names a task and its size, such as "N = 8" or "QA2, contexts to 64 tokens"."""
    longest = getattr(task, "max_context_tokens", None)
    contexts = f", contexts to {longest} tokens" if longest else ""
    return size_name(config.task, vars(task)) + contexts


def _stage_name(config: ConfigDict, model: MemoryModel, task: Any) -> str:
    return f"{task_name(config, task)}, K = {model.config.num_write_steps}"
