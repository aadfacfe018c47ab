"""Finished runs below a folder: what they are called and in what they differ."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.program import files
from experiments.program.console import log
from experiments.results.run_checks import check_config, check_metrics
from experiments.run.saved_run import check_names
from experiments.run.workdir import EXPORTED, earlier_defaults, is_run, trained_since
from gradmem_jax.checks import require
from gradmem_jax.data.tasks import SIZES, TASKS, size_name
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.methods import BY_GRADIENT

NAMES = {
    "full_context": "full context",
    "mamba": "Mamba",
    "mamba2": "Mamba-2",
    "ttt_linear": "TTT-Linear",
    "lact": "LaCT",
    "armt": "ARMT",
    "rmt": "RMT",
    "kv_prefix": "KV prefix",
    "warm_start": "warm start",
    "gradmem": "GradMem",
}
METHODS_WITH_STEPS = (*BY_GRADIENT, "rmt")
GRADIENT_MODES = {"second": "", "first": ", first order", "none": ", no gradient through WRITE"}
NOT_COMPARED = ("seed", "data.seed", "init_checkpoint")
# How a run is computed, watched and evaluated at its end: fields, and groups of them, that make no
# other setting of it.
NO_SETTING = (
    "cpu_devices",
    "num_micro_batches",
    "mesh",
    "log_every",
    "log_to",
    "save_every",
    "skip_nonfinite",
    "num_eval_samples",
    "final_num_write_steps",
    "data.data_dir",
    "data.tokenizer_path",
    "lm.scan_layers",
    "lm.remat",
    "lm.attention",
    "lm.gather",
)


def name_pattern(only: str) -> re.Pattern[str]:
    """Compiles --only, or refuses it."""
    try:
        return re.compile(only)
    except re.error as error:
        raise ValueError(
            f"--only={only!r} is not a regular expression ({error}); escape special characters."
        ) from error


class Metric(NamedTuple):
    """What a run is judged by.

    Attributes:
        field: its name in metrics.json.
        name: what people call it, with its unit.
        scale: from the value in metrics.json to that unit.
        digits: to print.
        limits: of an axis, (None, None) if there are none.
    """

    field: str
    name: str
    scale: float = 1.0
    digits: int = 2
    limits: tuple[float | None, float | None] = (None, None)

    def value(self, metrics: Mapping[str, Any]) -> float:
        """The metric in its unit."""
        return self.scale * metrics[self.field]


_RATE: Any = {"scale": 100.0, "digits": 1, "limits": (-2, 102)}
METRICS = {
    metric.field: metric
    for metric in (
        Metric("exact_match", "exact match, %", **_RATE),
        Metric("token_accuracy", "token accuracy, %", **_RATE),
        Metric("read_loss", "READ loss, nats a token"),
    )
}


class FinishedRun(NamedTuple):
    """A finished run.

    Attributes:
        name: its folder below the root.
        config: config.json.
        metrics: metrics.json.
    """

    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def task(self) -> str:
        """A name of gradmem_jax/data/tasks.py."""
        return self.config.get("task", "kv_retrieval")

    @property
    def size(self) -> int:
        """How much there is to remember, such as N; 0 if the task has one size only."""
        return self.config["data"][SIZES[self.task].field] if self.task in SIZES else 0

    @property
    def size_name(self) -> str:
        """What people call the size, such as "N = 8"."""
        return size_name(self.task, self.config["data"])

    @property
    def metric(self) -> Metric:
        """What the run is judged by."""
        return METRICS[self.config.get("best_metric", "exact_match")]

    @property
    def score(self) -> float:
        """The run's result in the units of `metric`."""
        return self.metric.value(self.metrics)


class Found(NamedTuple):
    """What lies below a folder.

    Attributes:
        runs: finished runs.
        unfinished: names of runs without metrics.json, or that were trained on since.
        damaged: what is wrong with runs that cannot be read.
    """

    runs: list[FinishedRun]
    unfinished: list[str]
    damaged: list[str]


def find_runs(root: pathlib.Path, only: str = "") -> Found:
    """Reads the runs below a folder.

    Args:
        root: the folder.
        only: regular expression; only runs whose name has it.

    Raises:
        ValueError: there is no finished run, or `only` is wrong.
    """
    require(root.is_dir(), f"--root={root} is not a folder; give the one that holds the runs.")
    pattern = name_pattern(only)
    found = Found([], [], [])
    for path in sorted(root.rglob("config.json")):
        name = one_line(path.parent.relative_to(root).as_posix())
        if any((folder / EXPORTED).exists() for folder in (path.parent, path.parent.parent)):
            continue  # made by experiments.export, and the language model in it
        if not pattern.search(name):
            continue
        if not path.with_name("metrics.json").exists():
            if is_run(path.parent):
                found.unfinished.append(name)
            continue
        try:
            config, metrics = files.read_json(path), files.read_json(path.with_name("metrics.json"))
            check_names(path, config)
            check_config(config)
            run = FinishedRun(name, config, metrics)
            check_metrics(metrics, run.metric.field)
            if trained_since(path.parent, metrics):
                found.unfinished.append(name)
                continue
            require(label(run.config) != "", "no method")
            require(all(0 <= x < 2**31 for x in (run.size, run.score)), "no size or score")
            found.runs.append(run)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            found.damaged.append(f"{name} ({one_line(str(error), 300)})")
            log.warning("left out, damaged: %s: %s", name, shown(error))
    there = [f"{name} (not finished)" for name in found.unfinished] + found.damaged
    there = there or sorted(one_line(path.name) for path in root.iterdir())
    require(
        found.runs != [],
        f"{root} holds no finished run, a folder with config.json and metrics.json. There is: "
        f"{', '.join(there) or 'nothing'}.",
    )
    return found


def label(config: Mapping[str, Any]) -> str:
    """Names a run's method for people, such as "GradMem, K = 2"."""
    method, model = config.get("method", "gradmem"), config["model"]
    text = NAMES.get(method, method)
    if method in METHODS_WITH_STEPS:
        text += f", K = {model['num_write_steps']}"
    mode = model.get("gradient_mode", "second")
    text += GRADIENT_MODES.get(mode, f", {mode}")
    if model.get("second_order_steps") is not None:
        text += f", second order in the last {model['second_order_steps']}"
    return one_line(text, 100)


def task_name(config: Mapping[str, Any]) -> str:
    """Names a run's task and the fields that are not as usual, its size aside."""
    task = config.get("task", "kv_retrieval")
    left_out = (
        SIZES[task].field if task in SIZES else "",
        "queries_per_context",
        "seed",
        "data_dir",
    )
    fields = {name: value for name, value in config["data"].items() if name not in left_out}
    text = task
    if {"key_length", "value_length", "alphabet_size"} <= fields.keys():
        lengths = fields.pop("key_length"), fields.pop("value_length")
        text = "Keys of {}, values of {} symbols".format(*lengths)
        text += f" out of {fields.pop('alphabet_size')}"
    known = dataclasses.fields(TASKS[task]) if task in TASKS else ()
    usual = {field.name: files.to_json(field.default) for field in known}
    changed = [f"{name} {x}" for name, x in fields.items() if name not in usual or x != usual[name]]
    return one_line(", ".join([text, *changed]), 300)


def all_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration by whole name; those from after its time as a run had them.

    Of `init_from` it says only whether there is one: seeds of a chain start from others' seeds.
    """
    names = (config.get("method", "gradmem"), config.get("task", "kv_retrieval"))
    try:
        default = earlier_defaults(*names, bool(config.get("pretrained")))
    except ValueError:  # of a method or a task that is not here
        default = {}
    fields = default | files.flatten(config)
    return fields | {"init_from": "another run" if fields.get("init_from") else "nothing"}


def is_setting(field: str) -> bool:
    """Whether another value of a field is another experiment."""
    return not any(field == name or field.startswith(f"{name}.") for name in NO_SETTING)


def differing_fields(runs: Sequence[FinishedRun]) -> dict[str, list[Any]]:
    """Returns the values of every field, those NOT_COMPARED aside, that runs do not agree on.

    Values and names are whole: what is shortened to be printed may look alike.
    """
    flat = [all_fields(run.config) for run in runs]
    differing = {}
    for name in dict.fromkeys(name for fields in flat for name in fields):
        values = {repr(value): value for value in (each.get(name, "missing") for each in flat)}
        if len(values) > 1 and name not in NOT_COMPARED:
            differing[name] = list(values.values())
    return differing


def differences(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """What `differing_fields` finds, to be printed."""
    found = differing_fields(runs)
    names = told_apart([one_line(name, 100) for name in found])
    values = [told_apart([shown(value) for value in values]) for values in found.values()]
    return dict(zip(names, values, strict=True))


def told_apart(texts: Sequence[str]) -> list[str]:
    """Puts a number behind each text that was there before, as shortened ones may be."""
    taken: dict[str, None] = {}
    for text in texts:
        numbered = (f"{text} ({i})" for i in itertools.count(2))
        taken[next(each for each in itertools.chain([text], numbered) if each not in taken)] = None
    return list(taken)
