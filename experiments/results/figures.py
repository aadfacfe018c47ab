"""Figures for people who would rather look than read."""

import itertools
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from gradmem_jax.foreign_text import one_line
from gradmem_jax.storage.memory_file import StoredContext
from gradmem_jax.storage.writing import write_file

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # names of others are no formulas

_LONGEST_NAME = 40
_LEGEND_WIDTH = 36  # characters of a line
_LEGEND_MARGIN = 0.2  # inches, above and below together
_LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # and markers, ten colours each


def save(figure: Figure, path: pathlib.Path, dpi: int = 110) -> None:
    """Writes a figure to a file, in place of one that is there, and closes it."""
    write_file(path, lambda place: figure.savefig(place, dpi=dpi))
    plt.close(figure)


def whole_ticks(axes: Axes) -> None:
    """Has the x axis show whole numbers only, as steps are."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def plain_numbers(axis: Axis) -> None:
    """Has a logarithmic axis say 0.1 and 20; by default it says them in formulas."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def line_style(i: int, count: int) -> dict[str, Any]:
    """How line `i` of some is drawn: the first is the thickest, so that it shows below others."""
    left_over = (count - 1 - i) / max(count - 1, 1)  # 1 at the bottom, 0 on top
    return dict(
        color=f"C{i % 10}",
        marker="osD^v"[i % 5],
        linestyle=("-", "--", ":")[i // 10 % 3],
        linewidth=1.2 + 2.4 * left_over,
        markersize=4 + 5 * left_over,
        capsize=3,
    )


def outside_legend(figure: Figure, drawn: Mapping[str, Any]) -> None:
    """Puts the names of lines beside the panels, where none hides a line; long ones are broken.

    The figure grows to the height of the names.
    """
    names = [textwrap.fill(name, _LEGEND_WIDTH) for name in drawn]
    lines = list(drawn.values())
    legend = figure.legend(lines, names, loc="outside right upper", fontsize="small")
    height = legend.get_window_extent().height / figure.dpi + _LEGEND_MARGIN
    figure.set_figheight(max(height, figure.get_figheight()))


def exact_match_by_steps(
    path: pathlib.Path,
    results: Mapping[str, Mapping[int, Mapping[str, Any]]],
    trained: Mapping[str, Any],
) -> None:
    """Draws exact match, and WRITE loss by kind of token, against the number of WRITE steps.

    Args:
        path: PNG to write.
        results: by name of the task, then by number of WRITE steps, as `evaluate_params` returns.
        trained: task and num_write_steps of the training.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, (name, rows) in enumerate(results.items()):
        steps = list(rows)
        rates = [100 * rows[k]["exact_match"] for k in steps]
        bounds = [[100 * b for b in rows[k]["confidence_interval"]] for k in steps]
        errors = [
            [max(rate - low, 0) for rate, (low, _) in zip(rates, bounds, strict=True)],
            [max(high - rate, 0) for rate, (_, high) in zip(rates, bounds, strict=True)],
        ]
        left.errorbar(steps, rates, errors, label=name, **line_style(i, len(results)))
    left.axvline(trained["num_write_steps"], color="grey", linestyle=":", label="K in training")
    left.set(xlabel="WRITE steps K", ylabel="exact match, %", ylim=(-2, 102))
    left.set_title("Answers from memory alone")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize="small")
    whole_ticks(left)
    shown = trained["task"] if trained["task"] in results else next(iter(results))
    rows = results[shown]
    for kind in rows[next(iter(rows))].get("write_loss_of", ["all tokens"]):
        losses = [rows[k].get("write_loss_of", {}).get(kind, rows[k]["write_loss"]) for k in rows]
        right.plot(list(rows), losses, marker="o", label=kind)
    right.set(xlabel="WRITE steps K", ylabel="WRITE loss, nats a token", ylim=(0, None))
    right.set_title(f"What memory holds of the context, {shown}")
    right.legend()
    whole_ticks(right)
    save(figure, path)


def lost_pairs(path: pathlib.Path, results: Mapping[int, Mapping[str, Any]]) -> None:
    """Draws the lost pairs of KV retrieval by their place and by how many keys are like theirs.

    Args:
        path: PNG to write.
        results: by number of WRITE steps, as `count_lost_pairs` returns.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    by = {"by_place": "part of the context", "by_keys_alike": "other keys that are alike"}
    for panel, (name, x_label) in zip(axes, by.items(), strict=True):
        for i, (k, row) in enumerate(results.items()):
            lost = [100 * (1 - part["exact_match"]) for part in row[name].values()]
            panel.errorbar(list(row[name]), lost, label=f"K = {k}", **line_style(i, len(results)))
        panel.set(xlabel=x_label)
        panel.grid(alpha=0.3)
        whole_ticks(panel)
    axes[0].set(ylabel="pairs lost, %", ylim=(0, None))
    axes[1].legend()
    save(figure, path)


def panels(
    path: pathlib.Path,
    values: Mapping[str, Mapping[str, Mapping[int, tuple[float, float]]]],
    *,
    x_label: str,
    y_label: str,
    bottom: float | None = 0,
    top: float | None = None,
    log_x: bool = False,
    columns: int = 3,
    names: Sequence[str] = (),
) -> None:
    """Draws lines with error bars, in panels that share their axes and one legend.

    Args:
        path: PNG to write.
        values: (mean, deviation) by title of a panel, then by name of a line, then by x.
        x_label: what x is.
        y_label: what the values are.
        bottom: lower end of the y axis; None fits it to the values.
        top: upper end of the y axis; None fits it to the values.
        log_x: x on a logarithmic axis.
        columns: panels in a row, at most.
        names: all lines of a set of figures, so that each has its colour in all of them.
    """
    names = list(dict.fromkeys([*names, *(name for lines in values.values() for name in lines)]))
    columns = min(len(values), columns)
    rows = -(-len(values) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(3.5 * columns + 2.5, 3.5 * rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    drawn: dict[str, Any] = {}
    for axes, (title, lines) in zip(grid.flat, values.items(), strict=False):
        for name, points in lines.items():
            i, xs = names.index(name), sorted(points)
            means, deviations = zip(*(points[x] for x in xs), strict=True)
            drawn[name] = axes.errorbar(xs, means, deviations, **line_style(i, len(names)))
        ticks = sorted({x for points in lines.values() for x in points})
        if log_x:
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
        axes.set_xticks(ticks, [str(x) for x in ticks])
        axes.set(xlabel=x_label, title=title)
        axes.tick_params(labelleft=True)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(values) :]:
        axes.set_axis_off()
    grid[0, 0].set_ylim(bottom, top)  # of all, they share it
    for row in grid:
        row[0].set_ylabel(y_label)
    outside_legend(figure, drawn)
    save(figure, path)


def written_contexts(
    path: pathlib.Path,
    contexts: Sequence[StoredContext],
    sizes: Sequence[Mapping[str, int]],
    shown: int = 8,
) -> None:
    """Draws the WRITE loss of each context by step, and its memory beside its key-value cache.

    Args:
        path: PNG to write.
        contexts: what was written.
        sizes: of each, `memory_bytes` and perhaps `cache_bytes`.
        shown: how many contexts at most, the first ones.
    """
    contexts, sizes = contexts[:shown], sizes[:shown]
    names = [one_line(pathlib.PurePath(context.name).name, _LONGEST_NAME) for context in contexts]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, context in zip(names, contexts, strict=True):
        losses = [loss for row in context.write_losses for loss in row] + [context.final_loss]
        marker = "o" if len(losses) < 20 else ""
        left.plot(range(len(losses)), losses, marker=marker, label=name)
    left.set(xlabel="WRITE steps", ylabel="WRITE loss, nats a token", ylim=(0, None))
    left.set_title("What memory holds of the context")
    whole_ticks(left)
    left.legend()
    places = np.arange(len(contexts))
    for offset, kind in ((0.2, "memory"), (-0.2, "cache")):
        kilobytes = [size.get(f"{kind}_bytes", np.nan) / 1024 for size in sizes]
        label = "memory" if kind == "memory" else "key-value cache of the context"
        right.barh(places + offset, kilobytes, 0.4, label=label)
    right.set_yticks(
        places, [f"{n}\n{c.num_tokens} tokens" for n, c in zip(names, contexts, strict=True)]
    )
    right.invert_yaxis()
    right.set(xlabel="size, KiB", xlim=(0, None))
    right.set_title("Size")
    right.legend()
    save(figure, path)


def write_curves(path: pathlib.Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draws the WRITE loss and token accuracy by step, a line for each optimizer.

    Args:
        path: PNG to write.
        curves: by name of the optimizer, rows of step, write_loss and token_accuracy.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, rows in curves.items():
        steps = [row["step"] for row in rows]
        left.plot(steps, [row["write_loss"] for row in rows], label=name)
        right.plot(steps, [100 * row["token_accuracy"] for row in rows], label=name)
    left.set(xlabel="WRITE steps", ylabel="WRITE loss, nats a token", ylim=(0, None))
    right.set(xlabel="WRITE steps", ylabel="token accuracy after the true ones, %")
    right.set_ylim(0, 102)
    for axes in (left, right):
        whole_ticks(axes)
    left.legend()  # the lines on the right end at 100 %
    save(figure, path)


def learning_curves(
    path: pathlib.Path, values: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]
) -> None:
    """Draws scalars against training steps, a panel each, a line for each run.

    Args:
        path: PNG to write.
        values: by name of the scalar, such as "train/read_loss", then of the run: (step, value) in
            order.
    """
    names = list(dict.fromkeys(name for runs in values.values() for name in runs))
    styles = itertools.cycle((f"C{i}", *line) for line in _LINES for i in range(10))
    style_of = dict(zip(names, styles, strict=False))
    size = (5 * len(values) + 2, 4)
    figure, grid = plt.subplots(1, len(values), figsize=size, squeeze=False, layout="constrained")
    lines = {}
    for axes, (title, runs) in zip(grid.flat, values.items(), strict=True):
        for name, points in runs.items():
            color, line, marker = style_of[name]
            steps, heights = zip(*points, strict=True)
            options = dict(color=color, linestyle=line, marker=marker if len(points) < 20 else "")
            lines[name] = axes.plot(steps, heights, label=name, **options)[0]
        group, _, scalar = title.replace("_", " ").rpartition("/")
        axes.set(xlabel="training steps", ylabel=scalar, title=group)
        whole_ticks(axes)
        axes.grid(alpha=0.3)
    outside_legend(figure, {name: lines[name] for name in names})
    save(figure, path, dpi=100)
