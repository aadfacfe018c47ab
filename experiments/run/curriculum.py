"""The stages of a run: the task in growing sizes, the task itself last."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.run.plan import Stage, model_with
from gradmem_jax.checks import require
from gradmem_jax.data.tasks import size_name
from gradmem_jax.memory.interface import MemoryModel

CURRICULUM_SIZES = ("num_pairs", "max_context_tokens")


def build_stages(
    task_name: str, model: MemoryModel, task: Any, curriculum: Mapping[str, Any]
) -> tuple[Stage, ...]:
    """Returns the stages of a run, the task itself last; the only one without a curriculum.

    Args:
        task_name: a name of gradmem_jax/data/tasks.py.
        model: the model of the last stage.
        task: the task of the last stage.
        curriculum: by `num_pairs` or `max_context_tokens` the sizes, perhaps with as many
            `num_write_steps`; what is empty is not there.

    Raises:
        ValueError: two kinds of sizes, sizes that the task does not have, lists of different
            length, or a curriculum that does not end at the task.
    """
    own_steps = model.config.num_write_steps
    given = [name for name in CURRICULUM_SIZES if curriculum[name]]
    if not given:
        require(
            not curriculum["num_write_steps"],
            f"curriculum.num_write_steps needs one of {CURRICULUM_SIZES} of equal length.",
        )
        return (_stage(task_name, model, task),)
    require(
        len(given) == 1, f"curriculum.{given[0]} and curriculum.{given[-1]} exclude each other."
    )
    name, sizes = given[0], list(curriculum[given[0]])
    require(
        hasattr(task, name),
        f"curriculum.{name}={tuple(sizes)} must be empty: task {task_name!r} has no {name}.",
    )
    steps = list(curriculum["num_write_steps"]) or [own_steps] * len(sizes)
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
    return tuple(
        _stage(task_name, model_with(model, num_write_steps=k), resize(task, name, size))
        for size, k in zip(sizes, steps, strict=True)
    )


def _stage(task_name: str, model: MemoryModel, task: Any) -> Stage:
    text = f"{describe_task(task_name, task)}, K = {model.config.num_write_steps}"
    return Stage(model, task, text)


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


def describe_task(task_name: str, task: Any) -> str:
    """Names a task and its size, such as "N = 8" or "QA2, contexts to 64 tokens".

    Args:
        task_name: a name of gradmem_jax/data/tasks.py.
        task: a task of this name.
    """
    longest = getattr(task, "max_context_tokens", None)
    contexts = f", contexts to {longest} tokens" if longest else ""
    return size_name(task_name, vars(task)) + contexts
