"""Figures of what the benchmarks measured."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

from experiments.results.figures import save

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False


def growth(
    path: pathlib.Path, lines: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]]
) -> None:
    """Draws time and temporary memory of a step against each size.

    Args:
        path: PNG to write.
        lines: (value, measured) by size.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (("seconds", "step time, s"), ("temporary_mib", "temporary memory, MiB"))
    for panel, (field, label) in zip(axes, panels, strict=True):
        for i, (name, points) in enumerate(lines.items()):
            known = [(value, row[field]) for value, row in points if row.get(field)]
            if known:
                panel.plot(*zip(*known, strict=True), marker="osD^v"[i % 5], label=name)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set(xlabel="value of the size that changes", ylabel=label)
        panel.grid(alpha=0.3)
    axes[1].legend(title="size")
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
        axes.set(xlabel="queries N", ylabel="seconds")
        axes.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=8)
    save(figure, path)
