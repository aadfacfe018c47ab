"""Finished runs in groups: by method and size, and by memory tokens."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.results.finished_runs import NAMES, FinishedRun, Metric, label

Groups = Mapping[tuple[str, int], Sequence[FinishedRun]]  # by name of the method and size


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation, 0 of a single value."""
    with np.errstate(invalid="ignore"):  # a loss may be infinite
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return float(np.mean(values)), deviation


def metric_of(groups: Groups) -> Metric:
    """What the runs of a task are judged by."""
    return next(iter(groups.values()))[0].metric


def size_names(runs: Iterable[FinishedRun]) -> dict[int, str]:
    """What people call the sizes of a task, ascending."""
    return dict(sorted({run.size: run.size_name for run in runs}.items()))


def group_by(runs: Sequence[FinishedRun], key: Callable[[FinishedRun], Any]) -> dict[Any, Any]:
    """Groups runs by what `key` says of them."""
    groups = collections.defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return dict(groups)


def num_memory_tokens(run: FinishedRun) -> int | None:
    """m, if the run's method has memory tokens."""
    return run.config["model"].get("num_memory_tokens")


def by_method(runs: Sequence[FinishedRun]) -> Groups:
    """Groups the runs of a task by method and N; the method's name has m where m varies."""
    sizes = {num_memory_tokens(run) for run in runs} - {None}

    def key(run: FinishedRun) -> tuple[str, int]:
        m = num_memory_tokens(run)
        with_m = f", m = {m}" if len(sizes) > 1 and m is not None else ""
        return label(run.config) + with_m, run.size

    def rank(run: FinishedRun) -> tuple[int, str, int, int, str, int]:
        method, k = run.config.get("method", "gradmem"), run.config["model"].get("num_write_steps")
        place = list(NAMES).index(method) if method in NAMES else len(NAMES)
        return place, method, k or 0, num_memory_tokens(run) or 0, *key(run)

    return group_by(sorted(runs, key=rank), key)


def by_memory_tokens(runs: Sequence[FinishedRun]) -> dict[str, dict[str, dict[int, Any]]]:
    """Groups by (method without K, size), then by K, then by m; empty if there is one m only."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for run in sorted(runs, key=lambda run: run.config["model"].get("num_write_steps", 0)):
        m, k = num_memory_tokens(run), run.config["model"].get("num_write_steps", 1)
        if m is not None:
            title = f"{label(run.config).replace(f', K = {k}', '')}, {run.size_name}"
            by_m = found.setdefault(title, {}).setdefault(f"K = {k}", {})
            by_m.setdefault(m, []).append(run)
    return {
        title: lines
        for title, lines in found.items()
        if len({m for by_m in lines.values() for m in by_m}) > 1
    }
