"""Finished runs in groups: by method and size, and by memory tokens."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.results.finished_runs import (
    NAMES,
    FinishedRun,
    Metric,
    all_fields,
    differing_fields,
    is_setting,
    label,
    told_apart,
)
from gradmem_jax.foreign_text import one_line, shown


class Line(NamedTuple):
    """A row of a table, or a line of a figure: runs of one setting, in several sizes.

    Attributes:
        method: what people call it.
        setting: the fields in which runs of the method differ, "" if they do not. It is another
            text for other values, however much was left out of it.
    """

    method: str
    setting: str

    def __str__(self) -> str:
        return ", ".join(filter(None, self))


Groups = Mapping[tuple[Line, int], Sequence[FinishedRun]]  # by line and size


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


def settings(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """What each run, by name, has in the fields in which runs of its method and size differ.

    Fields that differ in one size are named in all of them, so that a line goes through sizes.
    """
    found: dict[str, str] = {}
    for same_method in group_by(runs, lambda run: label(run.config)).values():
        alike = group_by(same_method, lambda run: (run.size, num_memory_tokens(run)))
        differing = (name for group in alike.values() for name in differing_fields(group))
        names = [name for name in dict.fromkeys(differing) if is_setting(name)]

        def values(run: FinishedRun, names: Sequence[str] = names) -> tuple[str, ...]:
            fields = all_fields(run.config)
            return tuple(repr(fields.get(name)) for name in names)

        by_values = group_by(same_method, values)
        texts = told_apart([_setting(group[0], names) for group in by_values.values()])
        for text, group in zip(texts, by_values.values(), strict=True):
            found |= {run.name: text for run in group}
    return found


def _setting(run: FinishedRun, names: Sequence[str]) -> str:
    """Some fields of a run, to be printed."""
    fields = all_fields(run.config)
    return one_line(", ".join(f"{name}={_value(fields.get(name))}" for name in names), 200)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def by_method(runs: Sequence[FinishedRun]) -> Groups:
    """Groups the runs of a task by method, setting and N; a method's name has m where m varies."""
    sizes = {num_memory_tokens(run) for run in runs} - {None}
    setting_of = settings(runs)

    def key(run: FinishedRun) -> tuple[Line, int]:
        m = num_memory_tokens(run)
        with_m = f", m = {m}" if len(sizes) > 1 and m is not None else ""
        return Line(label(run.config) + with_m, setting_of[run.name]), run.size

    def rank(run: FinishedRun) -> tuple[int, str, int, int, str]:
        method, k = run.config.get("method", "gradmem"), run.config["model"].get("num_write_steps")
        place = list(NAMES).index(method) if method in NAMES else len(NAMES)
        return place, method, k or 0, num_memory_tokens(run) or 0, label(run.config)

    return group_by(sorted(runs, key=rank), key)


def by_memory_tokens(runs: Sequence[FinishedRun]) -> dict[str, dict[str, dict[int, Any]]]:
    """Groups by (method without K, setting, size), then by K, then by m.

    It is empty if there is one m only.
    """
    setting_of = settings(runs)
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for run in sorted(runs, key=lambda run: run.config["model"].get("num_write_steps", 0)):
        m, k = num_memory_tokens(run), run.config["model"].get("num_write_steps", 1)
        if m is not None:
            line = Line(label(run.config).replace(f", K = {k}", ""), setting_of[run.name])
            title = f"{line}, {run.size_name}"
            by_m = found.setdefault(title, {}).setdefault(f"K = {k}", {})
            by_m.setdefault(m, []).append(run)
    return {
        title: lines
        for title, lines in found.items()
        if len({m for by_m in lines.values() for m in by_m}) > 1
    }
