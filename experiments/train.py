"""Trains GradMem on KV retrieval and evaluates it with the context removed.

Run again with the same --workdir, a stopped run goes on from its last checkpoint. Example:

  python -m experiments.train --workdir=runs/kv_quick
  python -m experiments.train --config=experiments/configs/kv_paper.py:n8_k2 --workdir=runs/n8_k2
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, config_flags

from experiments import reporting
from experiments.build import Stage, build_optimizer_config, build_stages
from experiments.evaluation import evaluate_params, sample_answers, table
from experiments.reporting import log
from gradmem_jax import checkpoint
from gradmem_jax.config import require
from gradmem_jax.data.kv_retrieval import KVRetrievalSource
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.memory.interface import MemoryModel, Params, memory_floats
from gradmem_jax.memory.segments import write_context
from gradmem_jax.optimizer import make_optimizer
from gradmem_jax.training import TrainState, init_state, make_train_step

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


class Devices(NamedTuple):
    """Where arrays live: batches split over all devices, everything else on each of them."""

    batch: NamedSharding
    replicated: NamedSharding
    names: list[str]


def find_devices(batch_size: int) -> Devices:
    """Returns shardings over all devices, for data-parallel training."""
    devices = jax.devices()
    require(
        batch_size % len(devices) == 0,
        f"batch_size={batch_size} must be a multiple of the {len(devices)} devices.",
    )
    mesh = Mesh(np.array(devices), ("data",))
    split, whole = PartitionSpec("data"), PartitionSpec()
    kinds = [device.device_kind for device in devices]
    names = [f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))]
    return Devices(NamedSharding(mesh, split), NamedSharding(mesh, whole), names)


def start_state(config: ConfigDict, model: MemoryModel, optimizer: Any) -> TrainState:
    """Returns the state of step 0, with another run's parameters if `config.init_from` says so."""
    state = init_state(model, optimizer, jax.random.key(config.seed), config.frozen)
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


class Running(NamedTuple):
    """A curriculum stage that is being trained.

    Attributes:
        stage: its number, from 0.
        task: its name in progress lines.
        iterator: grain iterator over training batches.
        step_fn: the compiled training step.
        compile_seconds: how long that took.
    """

    stage: int
    task: str
    iterator: Any
    step_fn: Any
    compile_seconds: float


def next_batch(iterator: Any) -> dict[str, np.ndarray]:
    """Returns the next training batch, on the host."""
    batch = next(iterator)
    return {name: batch[name] for name in ("context_ids", "query_ids", "labels", "value_mask")}


def start_stage(
    config: ConfigDict, stages: list[Stage], index: int, devices: Devices, iterator_state: Any
) -> Running:
    """Opens the data of a stage, where `iterator_state` says, and compiles its training step."""
    model, data = stages[index]
    iterator = make_iterator(KVRetrievalSource(data), config.batch_size, repeat=True)
    if iterator_state is None:
        iterator_state = iterator.get_state()
    example = next_batch(iterator)
    iterator.set_state(iterator_state)
    started = time.monotonic()
    optimizer = make_optimizer(build_optimizer_config(config))
    step_fn = jax.jit(
        make_train_step(model, optimizer, config.num_micro_batches, config.frozen),
        donate_argnums=0,
        in_shardings=(devices.replicated, devices.batch),
        out_shardings=devices.replicated,
    )
    first = lambda: init_state(model, optimizer, jax.random.key(0), config.frozen)
    state = jax.eval_shape(first)
    compiled = step_fn.lower(state, example).compile()
    seconds = time.monotonic() - started
    task = f"N={data.num_pairs} K={model.config.num_write_steps}"
    log.info("training on %s; compiled in %.1f s", task, seconds)
    return Running(index, task, iterator, compiled, seconds)


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
        running = start_stage(config, stages, host["stage"], devices, host["iterator"])
        compile_seconds += running.compile_seconds
        reached = bool(host.get("reached"))
        window: list[Any] = []
        with reporting.Progress(workdir, config.num_steps, config.batch_size, step) as progress:
            while step < config.num_steps and not reached:
                batch = next_batch(running.iterator)
                on_device = jax.device_put(batch, devices.batch)
                state, metrics = running.step_fn(state, on_device)
                window.append((batch, metrics))
                step += 1
                if step % config.log_every and step < config.num_steps:
                    continue
                means = finish_window(window, step, workdir)
                window = []
                progress.train(step, running.task, means)
                threshold = config.curriculum.exact_match
                if running.stage < len(stages) - 1 and means["exact_match"] >= threshold:
                    running = start_stage(config, stages, running.stage + 1, devices, None)
                    compile_seconds += running.compile_seconds
                if step % config.evaluate_every == 0 or step == config.num_steps:
                    results = evaluate(config, target, state.params, devices)
                    log.info("step %d, fresh samples: %s", step, reporting.describe(results))
                    progress.scalars("evaluation", step, results)
                    wanted = config.stop_at_exact_match
                    reached = wanted is not None and results["exact_match"] >= wanted
                    host = {
                        "stage": running.stage,
                        "iterator": running.iterator.get_state(),
                        "seconds": trained_before + time.monotonic() - started,
                        "reached": reached,
                    }
                    checkpoint.save(checkpoints, step, state, host, results)
                progress.restart_clock(step)
    summary = final_report(config, target, workdir)
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
        target.data,
        [k],
        num_samples=config.num_eval_samples,
        batch_size=config.batch_size,
        batch_sharding=devices.batch,
    )[k]
    return {name: value for name, value in results.items() if isinstance(value, float)}


def final_report(config: ConfigDict, target: Stage, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluates the best checkpoint over several K and shows some answers."""
    best_step, params = checkpoint.restore_params(workdir / "checkpoints", "best")
    k = target.model.config.num_write_steps
    results = evaluate_params(
        target.model,
        params,
        dataclasses.replace(target.data, queries_per_context=1),
        sorted({*config.final_num_write_steps, k}),
        num_samples=config.num_eval_samples,
    )
    answers = sample_answers(target.model, params, target.data)
    (workdir / "answers.txt").write_text(answers + "\n")
    log.info("answers from memory alone, after %d WRITE steps\n%s", k, answers)
    log.info(
        "best checkpoint (step %d) on fresh samples, context removed\n%s", best_step, table(results)
    )
    write = lambda params, ids: write_context(target.model, params, ids)[0]
    shape = (1, *KVRetrievalSource(target.data)[0]["context_ids"].shape)
    memory = jax.eval_shape(write, params, jax.ShapeDtypeStruct(shape, np.int32))
    return {
        "method": config.method,
        "memory_floats": memory_floats(memory),
        "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
        "best_step": best_step,
        "num_pairs": target.data.num_pairs,
        "num_write_steps": k,
        "exact_match": results[k]["exact_match"],
        "by_num_write_steps": results,
    }


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    reporting.set_up_logging()
    train(_CONFIG.value, pathlib.Path(_WORKDIR.value))


if __name__ == "__main__":
    app.run(main)
