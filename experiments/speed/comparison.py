"""Tables of a benchmark: our figures, and the official code's beside them."""

from collections.abc import Sequence
from typing import Any

from experiments.program import formatting


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Our figures, with the share of the machine's matmul rate that the steps reach."""
    head = ["what", "K", "seconds", "peak MiB", "temporary MiB", "compile s", "GFLOP", "of matmul"]
    lines = []
    for row in rows:
        ours, share = row["ours"], None
        seconds, gflop, rate = ours.get("seconds"), ours.get("gflop"), row["gflop_per_second"]
        if seconds and gflop and rate:
            share = f"{100 * gflop / seconds / rate:.0f} %"
        fields = ("peak_mib", "temporary_mib", "compile_seconds", "gflop")
        first = ours.get("error") or seconds
        values = [ours.get(field) for field in fields]
        lines.append([row["what"], row["write_steps"], first, *values, share])
    return formatting.markdown(head, lines)


def comparison(rows: Sequence[dict[str, Any]]) -> str:
    """The official code beside ours."""
    head = ["what", "K", "official s", "ours s", "faster", "official MiB", "ours MiB", "memory"]
    lines = []
    for row in rows:
        official, ours = row["reference"], row["ours"]
        pair = [official.get("error") or official["seconds"], ours.get("error") or ours["seconds"]]
        peaks = [official.get("peak_mib"), ours.get("peak_mib")]
        faster = memory = None
        if not any("error" in measured for measured in (official, ours)):
            faster = f"{pair[0] / pair[1]:.2f} x"
            memory = f"{100 * peaks[1] / peaks[0]:.0f} %"
        lines.append([row["what"], row["write_steps"], *pair, faster, *peaks, memory])
    return formatting.markdown(head, lines)
