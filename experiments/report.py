"""Tables and figures of all finished runs below a folder.

Writes Markdown, to standard output too, and figures next to it. Example:

  python -m experiments.report --root=runs/kv_paper --out=docs/results
"""

import collections
import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from experiments.program import console, files, formatting, startup
from experiments.results import figures, paper_results
from experiments.results.finished_runs import (
    NAMES,
    FinishedRun,
    Metric,
    differences,
    find_runs,
    label,
    task_name,
)
from gradmem_jax.data.tasks import SIZES
from gradmem_jax.methods import BY_GRADIENT

_ROOT = flags.DEFINE_string("root", None, "Folder of the runs' folders (required).", required=True)
_ONLY = flags.DEFINE_string("only", "", "Regular expression; only runs whose name has it.")
_OUT = flags.DEFINE_string(
    "out", None, "Path of the report without suffix (required).", required=True
)
_TITLE = flags.DEFINE_string("title", "", "Heading of the report; default: names --root.")

Groups = Mapping[tuple[str, int], Sequence[FinishedRun]]  # by name of the method and size


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation, 0 of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def score(runs: Sequence[FinishedRun]) -> str:
    """Score of the seeds of one setting: `96.1 ± 0.7 (3)`, or `96.1` of one run."""
    mean, deviation = mean_and_deviation([run.score for run in runs])
    text = f"{mean:.{runs[0].metric.digits}f}"
    if len(runs) == 1:
        return text
    return f"{text} ± {deviation:.{runs[0].metric.digits}f} ({len(runs)})"


def _metric(groups: Groups) -> Metric:
    return next(iter(groups.values()))[0].metric


def _size_names(runs: Iterable[FinishedRun]) -> dict[int, str]:
    """What people call the sizes of a task, ascending."""
    return dict(sorted({run.size: run.size_name for run in runs}.items()))


def _group(runs: Sequence[FinishedRun], key: Callable[[FinishedRun], Any]) -> dict[Any, Any]:
    groups = collections.defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return dict(groups)


def _num_memory_tokens(run: FinishedRun) -> int | None:
    return run.config["model"].get("num_memory_tokens")


def _by_method(runs: Sequence[FinishedRun]) -> Groups:
    """Groups the runs of a task by method and N; the method's name has m where m varies."""
    sizes = {_num_memory_tokens(run) for run in runs} - {None}

    def key(run: FinishedRun) -> tuple[str, int]:
        m = _num_memory_tokens(run)
        with_m = f", m = {m}" if len(sizes) > 1 and m is not None else ""
        return label(run.config) + with_m, run.size

    def rank(run: FinishedRun) -> tuple[int, str, int, int, str, int]:
        method, k = run.config.get("method", "gradmem"), run.config["model"].get("num_write_steps")
        place = list(NAMES).index(method) if method in NAMES else len(NAMES)
        return place, method, k or 0, _num_memory_tokens(run) or 0, *key(run)

    return _group(sorted(runs, key=rank), key)


def _paper(runs: Sequence[FinishedRun]) -> float | None:
    return paper_results.find(runs[0].config)


def score_table(groups: Groups) -> str:
    """Score by method and size, with the paper's figure in brackets and notes below."""
    sizes = _size_names(run for runs in groups.values() for run in runs)
    compared = False
    rows = []
    for name in dict.fromkeys(name for name, _ in groups):
        cells = [name]
        for n in sizes:
            runs = groups.get((name, n))
            cell = score(runs) if runs else ""
            paper = _paper(runs) if runs else None
            if paper is not None:
                cell, compared = f"{cell} [{paper:.1f}]", True
            cells.append(cell)
        rows.append(cells)
    lines = [formatting.markdown([_metric(groups).name, *sizes.values()], rows)]
    notes = ["Mean ± standard deviation over seeds (their number)."]
    if compared:
        notes[0] += " In brackets: the paper's figure for this method and K."
    for (name, _), runs in groups.items():
        fields = [f"{f} ({', '.join(values)})" for f, values in differences(runs).items()]
        if fields:
            notes.append(f"Runs of {name}, {runs[0].size_name} differ in {', '.join(fields)}.")
        seeds = [run.config.get("seed") for run in runs]
        if len(set(seeds)) < len(seeds):
            notes.append(f"Several runs of {name}, {runs[0].size_name} have the same seed.")
    return "\n\n".join([*lines, "\n".join(f"- {note}" for note in notes)])


def cost_table(groups: Groups) -> str:
    """Memory, parameters, training steps and minutes by method and size."""
    head = ["method", "size", "memory, floats", "parameters", "steps", "minutes", "devices"]
    rows = []
    for (name, _), runs in groups.items():
        known = lambda field, runs=runs: [r.metrics[field] for r in runs if field in r.metrics]
        means = [
            f"{statistics.fmean(known(field)) / unit:,.{digits}f}" if known(field) else "?"
            for field, unit, digits in (
                *(("memory_floats", 1, 0), ("num_parameters", 1, 0), ("steps", 1, 0)),
                ("seconds", 60, 1),
            )
        ]
        devices = dict.fromkeys(" and ".join(names) for names in known("devices"))
        rows.append([name, runs[0].size_name, *means, ", ".join(devices) or "?"])
    return formatting.markdown(head, rows) + "\n\nMeans over seeds; memory is that of one sample."


def _by_memory(runs: Sequence[FinishedRun]) -> dict[str, dict[str, dict[int, Any]]]:
    """Groups by (method without K, size), then by K, then by m; empty if there is one m only."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for run in sorted(runs, key=lambda run: run.config["model"].get("num_write_steps", 0)):
        m, k = _num_memory_tokens(run), run.config["model"].get("num_write_steps", 1)
        if m is not None:
            title = f"{label(run.config).replace(f', K = {k}', '')}, {run.size_name}"
            by_m = found.setdefault(title, {}).setdefault(f"K = {k}", {})
            by_m.setdefault(m, []).append(run)
    several = lambda lines: len({m for by_m in lines.values() for m in by_m}) > 1
    return {title: lines for title, lines in found.items() if several(lines)}


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


def _curves(
    groups: Groups, value: Callable[[Mapping[str, Any]], float | None]
) -> dict[str, dict[str, dict[int, tuple[float, float]]]]:
    """Values by size, method and number of WRITE steps at evaluation, where runs have them."""
    panels: dict[str, dict[str, dict[int, tuple[float, float]]]] = {}
    for (name, _), runs in sorted(groups.items(), key=lambda item: item[0][1]):
        points = collections.defaultdict(list)
        for run in runs:
            for k, row in run.metrics["by_num_write_steps"].items():
                if (number := value(row)) is not None:
                    points[int(k)].append(number)
        if points:
            lines = panels.setdefault(runs[0].size_name, {})
            lines[name] = {k: mean_and_deviation(numbers) for k, numbers in points.items()}
    return panels


def _loss_of(kind: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: row.get("write_loss_of", {}).get(kind)


def _by_segment(groups: Groups) -> dict[str, dict[str, dict[int, tuple[float, float]]]]:
    """Exact match by how many segments were written since, as trained, where runs have segments."""
    panels: dict[str, dict[str, dict[int, tuple[float, float]]]] = {}
    for (name, _), runs in groups.items():
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
            panels.setdefault(runs[0].size_name, {})[name] = points
    return panels


def draw(prefix: str, folder: pathlib.Path, runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Draws the figures of a task and returns their captions by file name."""
    groups = _by_method(runs)
    metric = _metric(groups)
    scores = lambda runs: mean_and_deviation([run.score for run in runs])
    by_size: dict[str, dict[int, tuple[float, float]]] = {}
    for (name, n), members in groups.items():
        by_size.setdefault(name, {})[n] = scores(members)
    by_memory = {
        title: {k: {m: scores(members) for m, members in by_m.items()} for k, by_m in lines.items()}
        for title, lines in _by_memory(runs).items()
    }
    descent = {
        key: members
        for key, members in groups.items()
        if members[0].config.get("method", "gradmem") in BY_GRADIENT
    }
    loss_of = {kind: _curves(descent, _loss_of(kind)) for kind in ("value", "key")}
    losses = {
        f"{n}, {kind} tokens": curves[n]
        for n in loss_of["value"]
        for kind, curves in loss_of.items()
        if n in curves
    }
    captions: dict[str, str] = {}

    def add(name: str, caption: str, values: Mapping[str, Any], **options: Any) -> None:
        if values:
            file = f"{prefix}_{name}.png"
            figures.panels(folder / file, values, **options)
            captions[file] = caption

    methods, steps = list(by_size), "WRITE steps K at evaluation"
    bottom, top = metric.limits
    axis: dict[str, Any] = {"y_label": metric.name, "bottom": bottom, "top": top}
    what = metric.name.split(",")[0].capitalize()
    if runs[0].task in SIZES:
        x_label = SIZES[runs[0].task].axis
        add(
            *("sizes", f"{what} by {x_label}", {"": by_size}),
            **axis | {"x_label": x_label, "names": methods, "log_x": runs[0].task != "babi"},
        )
    add(
        *("steps", f"{what} by WRITE steps", _curves(groups, metric.value)),
        **axis | {"x_label": steps, "names": methods},
    )
    rate: dict[str, Any] = {"y_label": "exact match, %", "bottom": -2, "top": 102}
    loss: dict[str, Any] = {"y_label": "WRITE loss, nats a token", "columns": 4}
    add(
        *("write_loss", "WRITE loss by WRITE steps", losses),
        **loss | {"x_label": steps, "names": methods},
    )
    add(
        *("segments", "Exact match by segments written since"),
        _by_segment(groups),
        **rate | {"x_label": "segments written since", "names": methods},
    )
    add(
        *("memory", f"{what} by memory tokens m", by_memory),
        **axis | {"x_label": "memory tokens m", "log_x": True},
    )
    return captions


def write_report(root: pathlib.Path, out: pathlib.Path, title: str = "", only: str = "") -> str:
    """Writes `<out>.md` and its figures, and returns the Markdown.

    Args:
        root: folder that holds the runs.
        out: path without suffix.
        title: heading; "" names the root.
        only: regular expression; only runs whose name has it.

    Raises:
        ValueError: there is no finished run below the root, or `out` cannot be written.
    """
    files.output_file("out", out.with_name(f"{out.name}.md"))
    found = find_runs(root, only)
    tasks = _group(found.runs, lambda run: task_name(run.config))
    parts = [f"# {title or f'Results of {root}'}"]
    chosen = f" '--only={only}'" if only else ""
    parts.append(f"Made by `python -m experiments.report --root={root} --out={out}{chosen}`.")
    for i, (name, runs) in enumerate(sorted(tasks.items()), 1):
        groups, by_memory = _by_method(runs), _by_memory(runs)
        parts += [f"## {name}", score_table(groups), cost_table(groups)]
        if by_memory:
            parts.append(memory_table(by_memory))
        prefix = out.name if len(tasks) == 1 else f"{out.name}_{i}"
        drawn = draw(prefix, out.parent, runs)
        parts += [f"![{caption}]({file})" for file, caption in drawn.items()]
    for what, names in (
        ("not finished", found.unfinished),
        ("damaged and left out", found.damaged),
    ):
        if names:
            count = f"{len(names)} runs are" if len(names) > 1 else "1 run is"
            parts.append(f"{count} {what}: {', '.join(names)}.")
    text = "\n\n".join(parts) + "\n"
    (out.parent / f"{out.name}.md").write_text(text)
    return text


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    out = pathlib.Path(_OUT.value.removesuffix(".md"))
    text = write_report(pathlib.Path(_ROOT.value), out, _TITLE.value, _ONLY.value)
    print(text, end="")


if __name__ == "__main__":
    startup.run(main)
