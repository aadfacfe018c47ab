"""Tables of finished runs: scores, costs, scores by memory tokens."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.program import formatting
from experiments.results import paper_results
from experiments.results.finished_runs import FinishedRun, differences
from experiments.results.groups import (
    Groups,
    Line,
    mean_and_deviation,
    metric_of,
    size_names,
)


def score(runs: Sequence[FinishedRun]) -> str:
    """Score of the seeds of one setting: `96.1 ± 0.7 (3)`, or `96.1` of one run."""
    mean, deviation = mean_and_deviation([run.score for run in runs])
    text = f"{mean:.{runs[0].metric.digits}f}"
    if len(runs) == 1:
        return text
    return f"{text} ± {deviation:.{runs[0].metric.digits}f} ({len(runs)})"


def _paper_figure(runs: Sequence[FinishedRun]) -> float | None:
    """The paper's exact match, beside runs that are judged by theirs."""
    run = runs[0]
    return paper_results.find(run.config) if run.metric.field == "exact_match" else None


def score_table(groups: Groups) -> str:
    """Score by method and size, with the paper's figure in brackets and notes below."""
    sizes = size_names(run for runs in groups.values() for run in runs)
    compared = False
    lines = dict.fromkeys(line for line, _ in groups)
    rows = []
    for line in lines:
        cells = _head(lines, line)
        for n in sizes:
            runs = groups.get((line, n))
            cell = score(runs) if runs else ""
            paper = _paper_figure(runs) if runs else None
            if paper is not None:
                cell, compared = f"{cell} [{paper:.1f}]", True
            cells.append(cell)
        rows.append(cells)
    head = _head(lines, Line(metric_of(groups).name, "setting"))
    parts = [formatting.markdown([*head, *sizes.values()], rows)]
    notes = ["Mean ± standard deviation over seeds (their number)."]
    if compared:
        notes[0] += " In brackets: the paper's figure for this method and K."
    for (line, _), runs in groups.items():
        fields = [f"{f} ({', '.join(values)})" for f, values in differences(runs).items()]
        if fields:
            notes.append(f"Runs of {line}, {runs[0].size_name} differ in {', '.join(fields)}.")
        seeds = [run.config.get("seed") for run in runs]
        if len(set(seeds)) < len(seeds):
            notes.append(f"Several runs of {line}, {runs[0].size_name} have the same seed.")
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])


def _head(lines: Iterable[Line], line: Line) -> list[str]:
    """The cells that name a line; its setting has one if it is needed to tell lines apart."""
    return list(line) if any(each.setting for each in lines) else [line.method]


def cost_table(groups: Groups) -> str:
    """Memory, parameters, training steps and minutes by method and size."""
    lines = dict.fromkeys(line for line, _ in groups)
    head = ["size", "memory, floats", "parameters", "steps", "minutes", "devices"]
    head = _head(lines, Line("method", "setting")) + head
    rows = []
    for (line, _), runs in groups.items():
        means = [
            _mean(runs, "memory_floats"),
            _mean(runs, "num_parameters"),
            _mean(runs, "steps"),
            _mean(runs, "seconds", unit=60, digits=1),
        ]
        devices = dict.fromkeys(" and ".join(names) for names in _known(runs, "devices"))
        names = _head(lines, line)
        rows.append([*names, runs[0].size_name, *means, ", ".join(devices) or "?"])
    return formatting.markdown(head, rows) + "\n\nMeans over seeds; memory is that of one sample."


def _known(runs: Sequence[FinishedRun], field: str) -> list[Any]:
    """What those runs have in metrics.json that have it."""
    return [run.metrics[field] for run in runs if field in run.metrics]


def _mean(runs: Sequence[FinishedRun], field: str, unit: int = 1, digits: int = 0) -> str:
    known = _known(runs, field)
    return f"{statistics.fmean(known) / unit:,.{digits}f}" if known else "?"


def memory_table(by_memory: Mapping[str, Mapping[str, Mapping[int, Any]]]) -> str:
    """Score by m (rows) and K (columns), for every method and size with several m."""
    names = list(dict.fromkeys(k for lines in by_memory.values() for k in lines))
    rows = []
    for title, lines in by_memory.items():
        for m in sorted({m for by_m in lines.values() for m in by_m}):
            cells = [score(lines[k][m]) if m in lines.get(k, {}) else "" for k in names]
            rows.append([title, str(m), *cells])
    runs = next(iter(next(iter(next(iter(by_memory.values())).values())).values()))
    return formatting.markdown([runs[0].metric.name, "m", *names], rows)
