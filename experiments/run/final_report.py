"""What a finished run says of itself: its best checkpoint, evaluated, and some answers to read."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.program import formatting, hosts
from experiments.program.console import log
from experiments.run.devices import Devices
from experiments.run.evaluation import (
    answer_metrics,
    evaluate_params,
    one_query,
    sample_answers,
    table,
)
from experiments.run.plan import BEST_METRICS, RunPlan
from gradmem_jax.data.text_task import QuestionTask
from gradmem_jax.memory.interface import memory_floats
from gradmem_jax.memory.segments import write_context
from gradmem_jax.storage import checkpoint
from gradmem_jax.storage.writing import write_text
from gradmem_jax.trees import Params


def final_report(
    plan: RunPlan, workdir: pathlib.Path, devices: Devices
) -> tuple[dict[str, Any], Params]:
    """Evaluates the best checkpoint over several K on all devices.

    Returns:
        What is known of it, and its parameters on the first device.
    """
    best_step, split_params = checkpoint.restore_params(
        workdir / "checkpoints", "best", mesh=devices.mesh
    )
    target = plan.target
    k = target.model.config.num_write_steps
    results = evaluate_params(
        target.model,
        split_params,
        one_query(target.task),
        sorted({*plan.final_num_write_steps, k}),
        num_samples=plan.num_eval_samples,
        split=plan.final_split,
        mesh=devices.mesh,
    )
    params = devices.copy_to_first(split_params)
    text_metrics = {}
    if isinstance(target.task, QuestionTask):
        text_metrics = answer_metrics(
            target.model,
            params,
            target.task,
            num_samples=plan.num_eval_samples,
            split=plan.final_split,
        )
        log.info("generated answers: %s", formatting.describe(text_metrics))
    log.info(
        "best checkpoint (step %d) on fresh samples, context removed\n%s", best_step, table(results)
    )
    segments = (target.task.num_segments,) if target.task.num_segments > 1 else ()
    ids = jax.ShapeDtypeStruct((1, *segments, target.task.context_buckets[-1]), np.int32)
    memory, _ = jax.eval_shape(functools.partial(write_context, target.model), params, ids)
    summary = {
        "method": plan.method,
        "task": plan.task_name,
        "memory_floats": memory_floats(memory),
        "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
        "best_step": best_step,
        "num_write_steps": k,
        "best_metric": plan.best_metric,
        **{name: results[k][name] for name in BEST_METRICS},
        **text_metrics,
        "by_num_write_steps": results,
    }
    return summary, params


def show_answers(plan: RunPlan, workdir: pathlib.Path, params: Params) -> None:
    """Writes some answers to read to answers.txt and shows them."""
    target = plan.target
    answers = sample_answers(target.model, params, target.task, split=plan.final_split)
    if hosts.is_first():
        write_text(workdir / "answers.txt", answers + "\n")
    k = target.model.config.num_write_steps
    log.info("answers from memory alone, after %d WRITE steps\n%s", k, answers)
