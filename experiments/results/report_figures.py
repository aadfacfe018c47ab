"""Figures of a report: one task's runs by size, WRITE steps, segments and memory tokens."""

import collections
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.results import figures
from experiments.results.finished_runs import FinishedRun
from experiments.results.groups import (
    Groups,
    by_memory_tokens,
    by_method,
    mean_and_deviation,
    metric_of,
)
from gradmem_jax.data.tasks import SIZES
from gradmem_jax.methods import BY_GRADIENT

# Mean and deviation by panel, then by line, then by x.
Panels = dict[str, dict[str, dict[int, tuple[float, float]]]]


def draw(prefix: str, folder: pathlib.Path, runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Draws the figures of a task and returns their captions by file name."""
    groups = by_method(runs)
    metric = metric_of(groups)
    by_size: dict[str, dict[int, tuple[float, float]]] = {}
    for (line, n), members in groups.items():
        by_size.setdefault(str(line), {})[n] = _score(members)
    bottom, top = metric.limits
    axis: dict[str, Any] = {"y_label": metric.name, "bottom": bottom, "top": top}
    names = {"names": list(by_size)}
    steps = names | {"x_label": "WRITE steps K at evaluation"}
    loss = {"y_label": "WRITE loss, nats a token", "columns": 4}
    rate = {"y_label": "exact match, %", "bottom": -2, "top": 102}
    what = metric.name.split(",")[0].capitalize()
    captions: dict[str, str] = {}

    def add(name: str, caption: str, values: Mapping[str, Any], options: dict[str, Any]) -> None:
        if values:
            file = f"{prefix}_{name}.png"
            figures.panels(folder / file, values, **options)
            captions[file] = caption

    if runs[0].task in SIZES:
        x_label = SIZES[runs[0].task].axis
        sizes = axis | names | {"x_label": x_label, "log_x": runs[0].task != "babi"}
        add("sizes", f"{what} by {x_label}", {"": by_size}, sizes)
    add("steps", f"{what} by WRITE steps", _curves(groups, metric.value), axis | steps)
    add("write_loss", "WRITE loss by WRITE steps", _write_losses(groups), loss | steps)
    segments = rate | names | {"x_label": "segments written since"}
    add("segments", "Exact match by segments written since", _by_segment(groups), segments)
    tokens = axis | {"x_label": "memory tokens m", "log_x": True}
    add("memory", f"{what} by memory tokens m", _by_memory(runs), tokens)
    return captions


def _score(runs: Sequence[FinishedRun]) -> tuple[float, float]:
    return mean_and_deviation([run.score for run in runs])


def _by_memory(runs: Sequence[FinishedRun]) -> Panels:
    """Scores by method and size, number of WRITE steps, and memory tokens."""
    return {
        title: {k: {m: _score(members) for m, members in by_m.items()} for k, by_m in lines.items()}
        for title, lines in by_memory_tokens(runs).items()
    }


def _curves(groups: Groups, value: Callable[[Mapping[str, Any]], float | None]) -> Panels:
    """Values by size, method and number of WRITE steps at evaluation, where runs have them."""
    panels: Panels = {}
    for (line, _), runs in sorted(groups.items(), key=lambda item: item[0][1]):
        points = collections.defaultdict(list)
        for run in runs:
            for k, row in run.metrics["by_num_write_steps"].items():
                if (number := value(row)) is not None:
                    points[int(k)].append(number)
        if points:
            lines = panels.setdefault(runs[0].size_name, {})
            lines[str(line)] = {k: mean_and_deviation(numbers) for k, numbers in points.items()}
    return panels


def _loss_of(kind: str) -> Callable[[Mapping[str, Any]], float | None]:

    def value(row: Mapping[str, Any]) -> float | None:
        return row.get("write_loss_of", {}).get(kind)

    return value


def _by_segment(groups: Groups) -> Panels:
    """Exact match by how many segments were written since, as trained, where runs have segments."""
    panels: Panels = {}
    for (line, _), runs in groups.items():
        rows = [
            run.metrics["by_num_write_steps"].get(str(run.metrics["num_write_steps"]), {})
            for run in runs
        ]
        found = [row["exact_match_by_segment"] for row in rows if "exact_match_by_segment" in row]
        if found:
            newest_first = [[100 * rate for rate in reversed(rates)] for rates in found]
            points = {
                i: mean_and_deviation(rates)
                for i, rates in enumerate(zip(*newest_first, strict=True))
            }
            panels.setdefault(runs[0].size_name, {})[str(line)] = points
    return panels


def _write_losses(groups: Groups) -> Panels:
    """Losses of the tokens of values and of keys, a panel each by size, where a WRITE descends."""
    descent = {
        key: members
        for key, members in groups.items()
        if members[0].config.get("method", "gradmem") in BY_GRADIENT
    }
    loss_of = {kind: _curves(descent, _loss_of(kind)) for kind in ("value", "key")}
    return {
        f"{n}, {kind} tokens": curves[n]
        for n in loss_of["value"]
        for kind, curves in loss_of.items()
        if n in curves
    }
