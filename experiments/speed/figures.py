"""Figures of what the benchmarks measured."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

from experiments.results.figures import plain_numbers, save

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False


def growth(
    path: pathlib.Path, lines: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]]
) -> None:
    """Draws time and temporary memory of a step against each size, a column of panels each.

    Args:
        path: PNG to write.
        lines: (value, measured) by size.
    """
    size = (2.5 * len(lines) + 1, 6)
    figure, grid = plt.subplots(
        2, len(lines), figsize=size, sharex="col", sharey="row", squeeze=False, layout="constrained"
    )
    fields = (("seconds", "step time, s"), ("temporary_mib", "temporary memory, MiB"))
    for row, (field, label) in zip(grid, fields, strict=True):
        row[0].set_ylabel(label)
        for axes, points in zip(row, lines.values(), strict=True):
            known = [(value, measured[field]) for value, measured in points if measured.get(field)]
            if known:
                axes.plot(*zip(*known, strict=True), marker="o")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            plain_numbers(axes.yaxis)
            axes.grid(alpha=0.3)
    for axes, (name, points) in zip(grid[-1], lines.items(), strict=True):
        values = [value for value, _ in points]
        axes.set_xlabel(name)
        axes.minorticks_off()
        axes.set_xticks(values, [str(value) for value in values], rotation=90)
    save(figure, path)


def break_even(
    path: pathlib.Path, queries: Sequence[int], rows: Mapping[int, Mapping[str, Any]]
) -> None:
    """Draws total latency against the number of queries, from memory and from a cached context.

    Args:
        path: PNG to write.
        queries: numbers of queries N.
        rows: `total_seconds` by way of answering, and `crossing`, by context length.
    """
    columns = min(len(rows), 4) or 1
    count = -(-len(rows) // columns) or 1
    figure, grid = plt.subplots(
        count, columns, figsize=(3.3 * columns, 3 * count), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(rows) :]:
        axes.set_axis_off()
    for axes, (length, row) in zip(grid.flat, rows.items(), strict=False):
        for way, label in (("memory", "one WRITE, N READs"), ("cache", "prefill, N queries")):
            axes.plot(queries, row["total_seconds"][way], marker=".", label=label)
        at = row["crossing"]
        if at is not None and queries[0] <= at <= queries[-1]:
            axes.axvline(at, color="grey", linestyle=":")
        title = "never" if at is None else f"from N = {at:.0f}"
        axes.set_title(f"c = {length}: memory faster {title}", fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        plain_numbers(axes.xaxis)
        plain_numbers(axes.yaxis)
        axes.set(xlabel="queries N", ylabel="seconds")
        axes.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=8)
    save(figure, path)
