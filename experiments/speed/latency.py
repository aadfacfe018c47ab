"""When a memory is faster than a cached context: from the latencies of `experiments.break_even`."""

from collections.abc import Sequence
from typing import Any

from experiments.program import formatting
from experiments.speed import child_processes


def totals(row: child_processes.Measured, queries: Sequence[int]) -> dict[str, list[float]]:
    """Seconds of N queries, the WRITE or the prefill included, by way of answering them."""
    return {
        "memory": [row["write_seconds"] + n * row["read_seconds"] for n in queries],
        "cache": [row["prefill_seconds"] + n * row["query_seconds"] for n in queries],
    }


def crossing(row: child_processes.Measured) -> float | None:
    """The number of queries from which memory is faster; None if it never is.

    0 says that the WRITE is faster than the prefill already.
    """
    saved = row["query_seconds"] - row["read_seconds"]
    extra = row["write_seconds"] - row["prefill_seconds"]
    if saved <= 0:
        return None
    return max(extra / saved, 0.0)


def tables(rows: Sequence[tuple[int, child_processes.Measured]], queries: Sequence[int]) -> str:
    """The latencies with their crossing points, and the ratios of the totals, as Markdown."""
    head = ["c", "WRITE ms", "READ ms", "prefill ms", "query ms", "memory KiB", "cache KiB", "N*"]
    lines: list[list[Any]] = []
    ratios: list[list[Any]] = []
    for length, row in rows:
        if "error" in row:
            lines.append([length, row["error"], *[None] * 6])
            continue
        parts = ("write", "read", "prefill", "query")
        times = [1e3 * row[f"{name}_seconds"] for name in parts]
        sizes = [row["memory_bytes"] / 1024, row["cache_bytes"] / 1024]
        at = crossing(row)
        lines.append([length, *times, *sizes, "never" if at is None else f"{at:.0f}"])
        total = totals(row, queries)
        ratios.append(
            [length, *(b / a for a, b in zip(total["memory"], total["cache"], strict=True))]
        )
    return (
        formatting.markdown(head, lines)
        + "\n\nHow many times faster N queries are from memory than from the cache:\n\n"
        + formatting.markdown(["c", *(f"N = {n}" for n in queries)], ratios)
        + "\n"
    )


def describe(row: child_processes.Measured) -> str:
    """The progress line of a context length."""
    if "error" in row:
        return row["error"]
    names = ("write", "read", "prefill", "query")
    return ", ".join(f"{name} {1e3 * row[f'{name}_seconds']:.3g} ms" for name in names)
