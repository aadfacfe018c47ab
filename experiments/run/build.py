"""From a ConfigDict to the plan of a run: where every field is read, and all are checked."""

import jax
from ml_collections import ConfigDict

from experiments.program import files
from experiments.run.build_model import build_model, build_task
from experiments.run.curriculum import build_stages
from experiments.run.plan import BEST_METRICS, RunPlan, Start
from experiments.run.stored_sizes import Shapes, check_model, check_patterns, check_task
from experiments.run.workdir import is_run
from gradmem_jax.checks import (
    AUTOMATIC,
    require,
    require_choice,
    require_count,
    require_instance,
    require_integer,
    require_local,
    require_number,
)
from gradmem_jax.data.records import SPLITS
from gradmem_jax.parallel.sharding import MeshConfig
from gradmem_jax.training.optimizer import OptimizerConfig
from gradmem_jax.trees import split_params


def build(config: ConfigDict, stored: Shapes | None = None) -> RunPlan:
    """Returns the plan of the run that a configuration describes.

    Args:
        config: see experiments/configs/default.py.
        stored: shapes by name of the parameters of a run that is there, which may come from
            anybody: sizes that do not fit them are refused before anything is made of them.

    Raises:
        ValueError: a field is wrong, or the curriculum does not end at the task.
    """
    _check_run(config)
    optimizer = OptimizerConfig(num_steps=config.num_steps, **config.optimizer.to_dict())
    task = build_task(config)
    if stored is not None:
        check_task(task)
    model = build_model(config, task)
    if stored is not None:
        check_model(model.config, stored)
        check_patterns(config.frozen)
    elif config.frozen:
        split_params(jax.eval_shape(lambda: model.init(jax.random.key(0))), config.frozen)
    return RunPlan(
        fields=files.to_json(config.to_dict()),
        method=config.method,
        task_name=config.task,
        stages=build_stages(config.task, model, task, config.curriculum),
        next_stage_at=config.curriculum.exact_match,
        start=Start(
            config.pretrained, config.lm.to_dict(), config.init_from, config.init_checkpoint
        ),
        optimizer=optimizer,
        frozen=config.frozen,
        mesh=MeshConfig(**config.mesh.to_dict()),
        seed=config.seed,
        shuffle=config.shuffle,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        num_micro_batches=config.num_micro_batches,
        log_every=config.log_every,
        log_to=tuple(config.log_to),
        evaluate_every=config.evaluate_every,
        save_every=config.save_every,
        num_eval_samples=config.num_eval_samples,
        skip_nonfinite=config.skip_nonfinite,
        stop_at_exact_match=config.stop_at_exact_match,
        best_metric=config.best_metric,
        final_split=config.final_split,
        final_num_write_steps=tuple(config.final_num_write_steps),
    )


def _check_run(config: ConfigDict) -> None:
    """Refuses fields of a run that belong to no dataclass."""
    for name in ("num_steps", "batch_size", "log_every", "evaluate_every", "num_eval_samples"):
        require_integer(name, config[name], 1)
    for name in ("num_micro_batches", "cpu_devices"):
        require_count(name, config[name])
    for name in ("skip_nonfinite", "save_every"):
        require_integer(name, config[name], 0)
    if config.stop_at_exact_match is not None:
        _check_share("stop_at_exact_match", config.stop_at_exact_match)
    _check_share("curriculum.exact_match", config.curriculum.exact_match)
    _check_integers("final_num_write_steps", config.final_num_write_steps, 0)
    _check_integers("curriculum.num_pairs", config.curriculum.num_pairs, 1)
    _check_integers("curriculum.max_context_tokens", config.curriculum.max_context_tokens, 0)
    _check_integers("curriculum.num_write_steps", config.curriculum.num_write_steps, 0)
    for name in ("frozen", "log_to"):
        require_instance(name, config[name], tuple[str, ...])
    for name in ("pretrained", "init_from", "init_checkpoint", "final_split"):
        require_instance(name, config[name], str)
        require_local(name, config[name])
    require(
        not (config.pretrained and is_run(config.pretrained)),
        f"pretrained={config.pretrained!r} is a run, no language model alone; start from it with "
        f"init_from={config.pretrained!r}.",
    )
    require_instance("shuffle", config.shuffle, bool)
    require_choice("best_metric", config.best_metric, BEST_METRICS)
    require_choice("final_split", config.final_split, SPLITS)
    require(
        config.num_micro_batches == AUTOMATIC or config.batch_size % config.num_micro_batches == 0,
        f"batch_size={config.batch_size} must be a multiple of num_micro_batches="
        f"{config.num_micro_batches}.",
    )


def _check_share(name: str, share: float) -> None:
    require_number(name, share)
    require(0 <= share <= 1, f"{name}={share} must be in [0, 1].")


def _check_integers(name: str, numbers: tuple[int, ...], minimum: int) -> None:
    require_instance(name, numbers, tuple | list)
    for number in numbers:
        require_integer(name, number, minimum)
