"""Trains a way of writing memory on a task and evaluates it with the context removed.

Run again with the same --workdir, a stopped run goes on from its last checkpoint. Example:

  python -m experiments.train --workdir=runs/kv_quick
  python -m experiments.train --config=experiments/configs/kv_paper.py:n8_k2 --workdir=runs/n8_k2
"""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments import reporting
from experiments.build import (
    BEST_METRICS,
    LOWER_IS_BETTER,
    Stage,
    build_optimizer_config,
    build_stages,
    first_params,
    one_query,
)
from experiments.evaluation import answer_metrics, evaluate_params, sample_answers, table
from experiments.reporting import log
from experiments.stage import Devices, RunningStage, find_devices
from gradmem_jax import checkpoint
from gradmem_jax.config import require
from gradmem_jax.data.text_task import QuestionTask
from gradmem_jax.data.text_tokenizer import TextTokenizer
from gradmem_jax.memory.interface import MemoryModel, Params, memory_floats
from gradmem_jax.memory.segments import write_context
from gradmem_jax.optimizer import make_optimizer
from gradmem_jax.training import TrainState, init_state

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(pathlib.Path(__file__).parent / "configs" / "kv_quick.py"),
    "What to train: a file of experiments/configs, perhaps with an argument behind a colon.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run: checkpoints, TensorBoard, metrics.json.", required=True
)


class NonFiniteError(RuntimeError):
    """Loss or gradient became NaN or infinite."""


def start_state(config: ConfigDict, model: MemoryModel, optimizer: Any) -> TrainState:
    """Returns the state of step 0, with another run's parameters if `config.init_from` says so."""
    state = init_state(first_params(config, model), optimizer, config.frozen)
    if not config.init_from:
        return state
    step, params = checkpoint.restore_params(pathlib.Path(config.init_from) / "checkpoints")
    log.info("starting from step %d of %s", step, config.init_from)
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    require(
        shapes(params) == shapes(state.params),
        f"the parameters of init_from={config.init_from!r} do not fit this model; lm and model "
        "must be configured alike.",
    )
    return state._replace(params=params)


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes config.json, or refuses a workdir that belongs to another configuration."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    if path.exists():
        earlier = ConfigDict(reporting.read_json(path))
        current = ConfigDict(reporting.to_json(config.to_dict()))
        ignored = ("num_steps", "final_num_write_steps", "stop_at_exact_match", "init_from")
        different = [
            name
            for name in {*earlier.keys(), *current.keys()} - set(ignored)
            if earlier.get(name) != current.get(name)
        ]
        require(
            not different,
            f"{workdir} holds a run with other values of {sorted(different)}; choose another "
            "--workdir, or the same configuration to go on.",
        )
    reporting.write_json(path, config.to_dict())


def save_tokenizer(workdir: pathlib.Path, task: Any) -> None:
    """Keeps a tokenizer made of the task's texts, so that the run can be asked without them."""
    if isinstance(task.tokenizer, TextTokenizer) and not task.tokenizer_path:
        task.tokenizer.save(workdir / "tokenizer.json")


def finish_window(window: list[Any], step: int, workdir: pathlib.Path) -> dict[str, float]:
    """Waits for the steps of a log window and averages their metrics.

    Raises:
        NonFiniteError: a step was not finite; its batch is saved.
    """
    metrics = jax.device_get([metrics for _, metrics in window])
    for offset, ((batch, _), values) in enumerate(zip(window, metrics, strict=True)):
        if not values["finite"]:
            bad = step - len(window) + offset + 1
            path = workdir / f"nonfinite_batch_{bad}.npz"
            np.savez(path, **batch)
            raise NonFiniteError(
                f"loss or gradient of step {bad} is not finite (loss {values['loss']}); its batch "
                f"is in {path}. Parameters were left as before that step; checkpoints are whole. "
                "Lower optimizer.learning_rate or model.write_learning_rate, or clip."
            )
    return reporting.mean_metrics(metrics)


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, or goes on training, and evaluates the best checkpoint.

    Args:
        config: see experiments/configs/default.py.
        workdir: the run's folder.

    Returns:
        What is written to metrics.json.

    Raises:
        ValueError: the configuration is wrong, before anything is compiled.
        NonFiniteError: training diverged.
    """
    started = time.monotonic()
    stages = build_stages(config)
    target = stages[-1]
    devices = find_devices(config.batch_size)
    check_workdir(workdir, config)
    save_tokenizer(workdir, target.task)
    optimizer = make_optimizer(build_optimizer_config(config))
    compile_seconds = 0.0
    with checkpoint.open_checkpoints(workdir / "checkpoints") as checkpoints:
        state = jax.device_put(start_state(config, target.model, optimizer), devices.replicated)
        host: dict[str, Any] = {"stage": 0, "iterator": None, "seconds": 0.0}
        restored = checkpoint.restore_latest(checkpoints, state)
        if restored is not None:
            state, host = restored
            log.info("going on from step %d", int(state.step))
        step = int(state.step)
        size = sum(x.size for x in jax.tree.leaves(state.params))
        log.info("%d parameters on %s; compiling", size, " and ".join(devices.names))
        trained_before = host["seconds"]
        start = lambda index, iterator=None: RunningStage(
            config, stages, index, devices, state, iterator
        )
        running = start(host["stage"], host["iterator"])
        reached = bool(host.get("reached"))
        window: list[Any] = []
        with reporting.Progress(workdir, config.num_steps, config.batch_size, step) as progress:
            while step < config.num_steps and not reached:
                batch = running.next_batch()
                state, metrics = running.step(state, jax.device_put(batch, devices.batch))
                window.append((batch, metrics))
                step += 1
                if step % config.log_every and step < config.num_steps:
                    continue
                means = finish_window(window, step, workdir)
                window = []
                progress.train(step, running.name, means)
                threshold = config.curriculum.exact_match
                if running.index < len(stages) - 1 and means["exact_match"] >= threshold:
                    compile_seconds += running.compile_seconds
                    running = start(running.index + 1)
                if step % config.evaluate_every == 0 or step == config.num_steps:
                    results = evaluate(config, target, state.params, devices)
                    log.info("step %d, fresh samples: %s", step, reporting.describe(results))
                    progress.scalars("evaluation", step, results)
                    wanted = config.stop_at_exact_match
                    reached = wanted is not None and results["exact_match"] >= wanted
                    host = {
                        "stage": running.index,
                        "iterator": running.iterator.get_state(),
                        "seconds": trained_before + time.monotonic() - started,
                        "reached": reached,
                    }
                    checkpoint.save(
                        checkpoints, step, state, host, results | score(config, results)
                    )
                progress.restart_clock(step)
    summary = final_report(config, target, workdir)
    compile_seconds += running.compile_seconds
    summary |= {"steps": step, "compile_seconds": compile_seconds, "devices": devices.names}
    summary["seconds"] = trained_before + time.monotonic() - started
    reporting.write_json(workdir / "metrics.json", summary)
    log.info("%d steps, %s in all", step, reporting.minutes(summary["seconds"]))
    return summary


def evaluate(
    config: ConfigDict, target: Stage, params: Params, devices: Devices
) -> dict[str, float]:
    """Evaluates the task itself, with the trained number of WRITE steps."""
    k = target.model.config.num_write_steps
    results = evaluate_params(
        target.model,
        params,
        target.task,
        [k],
        num_samples=config.num_eval_samples,
        batch_size=config.batch_size,
        batch_sharding=devices.batch,
    )[k]
    return {name: value for name, value in results.items() if isinstance(value, float)}


def score(config: ConfigDict, results: Mapping[str, float]) -> dict[str, float]:
    """What the best checkpoint has most of: config.best_metric, or its negative if it is a loss."""
    value = results[config.best_metric]
    return {"score": -value if config.best_metric in LOWER_IS_BETTER else value}


def final_report(config: ConfigDict, target: Stage, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluates the best checkpoint over several K and shows some answers."""
    best_step, params = checkpoint.restore_params(workdir / "checkpoints", "best")
    k = target.model.config.num_write_steps
    results = evaluate_params(
        target.model,
        params,
        one_query(target.task),
        sorted({*config.final_num_write_steps, k}),
        num_samples=config.num_eval_samples,
        split=config.final_split,
    )
    text_metrics = {}
    if isinstance(target.task, QuestionTask):
        text_metrics = answer_metrics(
            target.model,
            params,
            target.task,
            num_samples=config.num_eval_samples,
            split=config.final_split,
        )
        log.info("generated answers: %s", reporting.describe(text_metrics))
    answers = sample_answers(target.model, params, target.task, split=config.final_split)
    (workdir / "answers.txt").write_text(answers + "\n")
    log.info("answers from memory alone, after %d WRITE steps\n%s", k, answers)
    log.info(
        "best checkpoint (step %d) on fresh samples, context removed\n%s", best_step, table(results)
    )
    write = lambda params, ids: write_context(target.model, params, ids)[0]
    segments = (target.task.num_segments,) if target.task.num_segments > 1 else ()
    ids = jax.ShapeDtypeStruct((1, *segments, target.task.context_buckets[-1]), np.int32)
    return {
        "method": config.method,
        "task": config.task,
        "memory_floats": memory_floats(jax.eval_shape(write, params, ids)),
        "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
        "best_step": best_step,
        "num_write_steps": k,
        "best_metric": config.best_metric,
        **{name: results[k][name] for name in BEST_METRICS},
        **text_metrics,
        "by_num_write_steps": results,
    }


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    reporting.set_up_logging()
    train(_CONFIG.value, pathlib.Path(_WORKDIR.value))


if __name__ == "__main__":
    app.run(main)
