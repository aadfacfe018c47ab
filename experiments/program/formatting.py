"""Metrics, durations and tables as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradmem_jax.foreign_text import one_line


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


def brief(seconds: float) -> str:
    """Formats a short duration in three digits: `20.7 s`, `345 ms`, `0.12 ms`."""
    return f"{three_digits(seconds)} s" if seconds >= 1 else f"{three_digits(1e3 * seconds)} ms"


def three_digits(value: float) -> str:
    """Formats a number in three digits, or more if it has more before the point, as people do."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats a table, right-aligned but for its first column.

    Floating numbers get three digits, None stays empty. Texts stay in their cells.
    """

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return "" if value is None else one_line(str(value)).replace("|", r"\|")

    ruler = ["---"] + ["---:"] * (len(head) - 1)
    lines = (head, ruler, *rows)
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)
