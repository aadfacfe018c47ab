"""Metrics, durations and tables as text."""

from collections.abc import Mapping, Sequence
from typing import Any


def describe(metrics: Mapping[str, float]) -> str:
    """Formats metrics for a log line, whole numbers as they are."""

    def text(value: float) -> str:
        return str(value) if isinstance(value, int) else f"{value:.4f}"

    return ", ".join(f"{name.replace('_', ' ')} {text(x)}" for name, x in metrics.items())


def minutes(seconds: float) -> str:
    """Formats a duration: `4:05`, or `2:04:05`."""
    hours, rest = divmod(round(seconds), 3600)
    text = f"{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
    return f"{hours}:{text}" if hours else text


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats a table, right-aligned but for its first column.

    Floating numbers get three digits, None stays empty.
    """

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return "" if value is None else str(value)

    ruler = ["---"] + ["---:"] * (len(head) - 1)
    cells = [[cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *cells))
