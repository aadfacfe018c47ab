"""How fast a training step grows with each size: fits to what `experiments.scaling` measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize

from experiments.program import formatting, startup
from experiments.speed import child_processes
from experiments.speed.setting import MIB, Setting
from gradmem_jax.checks import require, require_choice

SYMBOLS = {
    "context_tokens": "S",
    "write_steps": "K",
    "num_memory_tokens": "m",
    "batch_size": "B",
    "width": "d",
    "num_layers": "L",
    "query_tokens": "Q",
    "queries_per_context": "R",
    "vocab_size": "V",
    "micro_batches": "micro-batches",
}
_GROWN = ("seconds", "temporary_mib", "compile_seconds", "gflop")


def parse_sweeps(texts: Sequence[str]) -> dict[str, list[int]]:
    """Reads `NAME=V1,V2,...` into values by name.

    Raises:
        ValueError: a size that is not known, or a value that is no whole number.
    """
    sweeps = {}
    for text in texts:
        name, _, values = text.partition("=")
        require_choice("--vary", name, tuple(SYMBOLS))
        sweeps[name] = startup.integers(f"vary={name}", values.split(","))
        require(len(sweeps[name]) > 1, f"--vary={text} must name two values or more.")
    return sweeps


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The p of y ~ x ** p that fits best: slope of a line through the logarithms."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def growth(points: Sequence[tuple[int, child_processes.Measured]]) -> dict[str, Any]:
    """Fitted exponents of each figure, over all values, and over the last two only."""
    fits: dict[str, Any] = {}
    for name in _GROWN:
        known = [(x, row[name]) for x, row in points if row.get(name)]
        if len(known) > 1:
            xs, ys = zip(*known, strict=True)
            fits[name] = {"exponent": exponent(xs, ys), "last": exponent(xs[-2:], ys[-2:])}
    return fits


def memory_by_context(
    base: Setting, points: Sequence[tuple[int, child_processes.Measured]]
) -> dict[str, float] | None:
    """Splits temporary memory into a + b S + c S^2, all of them at least 0.

    Returns:
        The constant MiB, the KiB a token, and c in attention maps: arrays of float32
        [B, H, S, S]. None without three values. Relative errors are least in the sum of squares.
    """
    known = [(x, row["temporary_mib"]) for x, row in points if row.get("temporary_mib")]
    if len(known) < 3:
        return None
    xs, ys = np.array(known, float).T
    terms = np.stack([np.ones_like(xs), xs, xs**2], axis=1) / ys[:, None]
    (constant, linear, square), _ = optimize.nnls(terms, np.ones_like(ys))
    samples = base.batch_size // base.micro_batches
    map_mib = 4 * samples * base.num_heads / MIB
    return {
        "constant_mib": constant,
        "kib_per_token": linear * 1024,
        "attention_maps": square / map_mib,
        "largest_error": float(np.abs(terms @ [constant, linear, square] - 1).max()),
    }


def tables(report: dict[str, Any]) -> str:
    """The measured rows of each size, and the growth of all of them, as Markdown."""
    rate = report["matmul"].get("gflop_per_second")
    parts = []
    head = ["seconds", "temporary MiB", "peak MiB", "compile s", "GFLOP", "of matmul"]
    for name, rows in report["rows"].items():
        lines = []
        for value, row in rows:
            shown = [row.get(field) for field in ("temporary_mib", "peak_mib", "compile_seconds")]
            seconds, gflop = row.get("seconds"), row.get("gflop")
            share = f"{100 * gflop / seconds / rate:.0f} %" if seconds and rate else None
            lines.append([value, row.get("error") or seconds, *shown, gflop, share])
        parts.append(formatting.markdown([SYMBOLS[name], *head], lines))
    lines = [
        [SYMBOLS[name], *(text for field in _GROWN for text in _exponents(fits.get(field)))]
        for name, fits in report["growth"].items()
    ]
    head = ["time", "temporary memory", "compile time", "GFLOP"]
    parts.append(
        "Growth, the p of size ** p: over all values, and from the last but one to the last.\n\n"
        + formatting.markdown(["", *(text for h in head for text in (h, "last"))], lines)
    )
    if report["memory_by_context"]:
        fitted = report["memory_by_context"]
        parts.append(
            "Temporary memory over S: {constant_mib:.3g} MiB + {kib_per_token:.3g} KiB a token + "
            "{attention_maps:.3g} maps of attention, float32 [B, H, S, S]; largest error ".format(
                **fitted
            )
            + f"{100 * fitted['largest_error']:.0f} %."
        )
    return "\n\n".join(parts) + "\n"


def _exponents(fit: dict[str, float] | None) -> tuple[str | None, str | None]:
    return (None, None) if fit is None else (f"{fit['exponent']:.2f}", f"{fit['last']:.2f}")
