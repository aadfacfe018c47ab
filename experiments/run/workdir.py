"""The folder of a run: what marks it, its config.json and its tokenizer."""

import copy
import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.configs.default import get_config
from experiments.program import files, hosts
from experiments.program.console import log
from experiments.program.formatting import three_digits
from experiments.run.plan import RunPlan
from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage.steps import saved_steps
from gradmem_jax.storage.writing import write_file
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer, load_tokenizer
from gradmem_jax.training.optimizer import learning_rate_schedule

# What experiments.export writes in place of checkpoints, and where it describes a pretrained
# language model, whose parameters are among those of the run.
PARAMS, EXPORTED, LM = "params.safetensors", "exported.json", "lm"

# What a run did before it had a field, where that is not the field's default.
_EARLIER: dict[str, Any] = {"data.add_begin_token": False, "lm.matmul_precision": "default"}
_REMAT = "lm.remat"
# Fields that may change when a run goes on.
_MAY_CHANGE = (
    "num_steps",
    "final_num_write_steps",
    "final_split",
    "stop_at_exact_match",
    "skip_nonfinite",
    "save_every",
    "log_to",
    "init_from",
    "init_checkpoint",
    "mesh",
    "num_micro_batches",
    "cpu_devices",
)


def is_run(folder: str | pathlib.Path) -> bool:
    """Whether a folder is that of a run, begun or finished, or of an exported one.

    A pretrained language model has a config.json too, but of other fields.
    """
    folder = pathlib.Path(folder)
    if any((folder / name).exists() for name in ("checkpoints", PARAMS, EXPORTED)):
        return True
    try:
        fields = files.read_json(folder / "config.json")
    except ValueError:
        return False
    return isinstance(fields, dict) and {"model", "data", "num_steps"} <= fields.keys()


def require_no_run(flag: str, path: str) -> None:
    """Refuses a run where a pretrained language model is wanted."""
    require(
        not is_run(path),
        f"--{flag}={path} is a run; name the files of a pretrained language model.",
    )


def as_begun(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """Returns a configuration as the run in a workdir began, if it is to go on.

    What a run did before there was a field for it, it goes on doing, and the log says so.

    Args:
        config: what the command says, see experiments/configs/default.py.
        workdir: the folder of the run; perhaps there is none yet.
    """
    path = workdir / "config.json"
    if not (os.path.exists(path) and _has_results(workdir)):
        return config
    begun = copy.deepcopy(config)
    for name in _EARLIER.keys() - files.flatten(files.read_json(path)).keys():
        group, _, field = name.partition(".")
        if config[group].get(field, _EARLIER[name]) != _EARLIER[name]:
            begun[group][field] = _EARLIER[name]
            said = f"{name}={_EARLIER[name]}"
            log.info("%s began before there was %s; it goes on with %s", workdir, name, said)
    return begun


def _has_results(workdir: pathlib.Path) -> bool:
    """Whether a start came to a checkpoint or to its end."""
    return bool(saved_steps(workdir / "checkpoints")) or (workdir / "metrics.json").exists()


def trained_since(workdir: pathlib.Path, metrics: Mapping[str, Any]) -> bool:
    """Whether a run was given more steps, and has done some, since it wrote its metrics.json."""
    steps, reported = saved_steps(workdir / "checkpoints"), metrics.get("steps")
    return bool(steps) and isinstance(reported, int) and steps[-1] > reported


def check_workdir(workdir: pathlib.Path, plan: RunPlan) -> None:
    """Writes config.json, or refuses a workdir of an export, or of another configuration.

    A run that began before a field was there has the field's default, or what `as_begun` takes for
    it; that is not written down, so that the same command goes on again. What a start left that
    came to no checkpoint is overwritten.
    """
    require(
        not (workdir / EXPORTED).exists(),
        f"{workdir} is what experiments.export made of a run; choose another --workdir, and start "
        f"from it with --config.init_from={workdir}.",
    )
    path = workdir / "config.json"
    earlier = files.flatten(files.read_json(path)) if path.exists() else {}
    steps = saved_steps(workdir / "checkpoints")
    has_results = _has_results(workdir)
    if earlier and has_results:
        different = _different(earlier, plan)
        require(
            not different,
            f"{workdir} holds a run with other values of {different}; choose another "
            "--workdir, or the same configuration to go on.",
        )
    require(
        not steps or plan.num_steps >= steps[-1],
        f"num_steps={plan.num_steps} is less than the {max(steps, default=0)} steps that "
        f"{workdir} was trained for; give so many or more, or choose another --workdir.",
    )
    if steps:
        _check_vocabulary(workdir, plan.target.task)
        _say_new_rates(workdir, earlier, steps[-1], plan)
    if not hosts.is_first():
        return
    made_tokenizer = not (earlier.get("data.tokenizer_path") or earlier.get("pretrained"))
    if earlier and not has_results and made_tokenizer:
        (workdir / "tokenizer.json").unlink(missing_ok=True)
    unsaid = _EARLIER.keys() - earlier.keys() if earlier and has_results else set()
    files.write_json(path, _without(plan.fields, unsaid))


def _check_vocabulary(workdir: pathlib.Path, task: Any) -> None:
    """Refuses to go on with other words than a run was trained on: their ids are others."""
    path = workdir / "tokenizer.json"
    if not (_makes_tokenizer(task) and path.exists()):
        return
    ids, ours = (t.backend.get_vocab() for t in (load_tokenizer(path), task.tokenizer))
    if ids == ours:
        return
    changed = sorted(ids.keys() ^ ours.keys()) or sorted(w for w in ids if ids[w] != ours[w])
    raise ValueError(
        f"{workdir} was trained on texts with other words; {len(changed)} differ, such as "
        f"{shown(changed[0])}. Its tokens would get other ids than those it has learned. Put its "
        f"texts back; or choose another --workdir, with --config.init_from={workdir}.",
    )


def _without(fields: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Fields of a configuration without some, which have whole names."""
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in fields.items()
        if prefix + key not in names
    }


def _say_new_rates(
    workdir: pathlib.Path, earlier: Mapping[str, Any], step: int, plan: RunPlan
) -> None:
    """Says that a cosine schedule of another length goes on at another learning rate."""
    optimizer = plan.optimizer
    num_steps = earlier.get("num_steps", plan.num_steps)
    if optimizer.schedule != "cosine" or num_steps == plan.num_steps:
        return
    with jax.numpy_dtype_promotion("standard"):  # optax counts on it
        before, now = (
            float(learning_rate_schedule(dataclasses.replace(optimizer, num_steps=number))(step))
            for number in (num_steps, plan.num_steps)
        )
    log.warning(
        "num_steps was %d and is %d: the cosine schedule now ends there, so the learning rate goes "
        "on at %s, where it had come to %s. To train on at a rate of your own, start another run "
        "with --config.init_from=%s and optimizer.schedule=constant.",
        num_steps,
        plan.num_steps,
        three_digits(now),
        three_digits(before),
        workdir,
    )


def earlier_defaults(method: str, task: str, pretrained: bool) -> dict[str, Any]:
    """What a run does, by whole name of a field, that its config.json does not have.

    Raises:
        ValueError: there is no such method or task.
    """
    default = files.flatten(files.to_json(get_config(method, task, pretrained).to_dict()))
    return default | {name: value for name, value in _EARLIER.items() if name in default}


def _different(earlier: dict[str, Any], plan: RunPlan) -> list[str]:
    """Whole names of the fields in which a plan is not what a run began with."""
    default = earlier_defaults(plan.method, plan.task_name, bool(plan.start.pretrained))
    current = files.flatten(plan.fields)
    if (earlier.get(_REMAT), current.get(_REMAT)) == ("none", "auto"):  # the default was "none"
        current[_REMAT] = "none"
    return sorted(
        name
        for name in {*earlier, *current}
        if name.partition(".")[0] not in _MAY_CHANGE
        and earlier.get(name, default.get(name)) != current.get(name)
    )


def _makes_tokenizer(task: Any) -> bool:
    """Whether a task makes a tokenizer of its texts."""
    return isinstance(task.tokenizer, TextTokenizer) and not task.tokenizer_path


def save_tokenizer(workdir: pathlib.Path, task: Any) -> None:
    """Keeps a tokenizer made of the task's texts, so that the run can be asked without them."""
    if _makes_tokenizer(task):
        write_file(workdir / "tokenizer.json", task.tokenizer.save)
