"""When a WRITE pays: one WRITE and N READs against a cached full context and N queries to it.

  python -m experiments.break_even --out=runs/break_even --write_steps=1

For every context length it measures the latency of a WRITE, of a READ, of the prefill that fills a
key-value cache, and of a query to that cache; the rest is arithmetic. Sizes of SmolLM2 135M:

  python -m experiments.break_even --out=runs/smollm2 --width=576 --num_layers=30 --num_heads=9 \
      --num_kv_heads=3 --mlp_width=1536 --vocab_size=49152 --tied_head
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from experiments import children, reporting, speed_figures
from experiments.reporting import log
from experiments.setting import define_flags

_CONTEXT_TOKENS = flags.DEFINE_list(
    "context_tokens", ["64", "128", "256", "512", "1024", "2048", "4096"], "Context lengths c."
)
_QUERIES = flags.DEFINE_list(
    "queries", [str(2**i) for i in range(11)], "Numbers of queries N to a context."
)
_THREADS = flags.DEFINE_integer("threads", None, "CPUs to run on; default: all.")
_OUT = flags.DEFINE_string("out", None, "Path of the results, without suffix.", required=True)
_setting = define_flags(
    without=("context_tokens", "queries_per_context", "meta_gradient", "remat"),
    batch_size=16,
    query_tokens=24,
    write_steps=1,
)


def totals(row: children.Measured, queries: Sequence[int]) -> dict[str, list[float]]:
    """Seconds of N queries, the WRITE or the prefill included, by way of answering them."""
    return {
        "memory": [row["write_seconds"] + n * row["read_seconds"] for n in queries],
        "cache": [row["prefill_seconds"] + n * row["query_seconds"] for n in queries],
    }


def crossing(row: children.Measured) -> float | None:
    """The number of queries from which memory is faster; None if it never is.

    0 says that the WRITE is faster than the prefill already.
    """
    saved = row["query_seconds"] - row["read_seconds"]
    extra = row["write_seconds"] - row["prefill_seconds"]
    if saved <= 0:
        return None
    return max(extra / saved, 0.0)


def tables(rows: Sequence[tuple[int, children.Measured]], queries: Sequence[int]) -> str:
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
        children.markdown(head, lines)
        + "\n\nHow many times faster N queries are from memory than from the cache:\n\n"
        + children.markdown(["c", *(f"N = {n}" for n in queries)], ratios)
        + "\n"
    )


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    reporting.set_up_logging()
    lengths = reporting.integers("context_tokens", _CONTEXT_TOKENS.value)
    queries = reporting.integers("queries", _QUERIES.value)
    settings = [_setting(context_tokens=length) for length in lengths]
    threads = children.limit_threads(_THREADS.value)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for length, setting in zip(lengths, settings, strict=True):
        row = children.measure("break_even", setting)
        if "error" not in row:
            row |= {"crossing": crossing(row), "total_seconds": totals(row, queries)}
        rows.append((length, row))
        log.info("c = %d: %s", length, describe(row))
    report = {
        "setting": dataclasses.asdict(settings[0]) | {"context_tokens": lengths},
        "threads": threads,
        "queries": queries,
        "by_context_tokens": dict(rows),
    }
    reporting.write_json(out.with_suffix(".json"), report)
    out.with_suffix(".md").write_text(tables(rows, queries))
    measured = {length: row for length, row in rows if "error" not in row}
    speed_figures.break_even(out.with_suffix(".png"), queries, measured)
    log.info("%s\nwrote %s, .md and .png", tables(rows, queries), out.with_suffix(".json"))


def describe(row: children.Measured) -> str:
    """The progress line of a context length."""
    if "error" in row:
        return row["error"]
    names = ("write", "read", "prefill", "query")
    return ", ".join(f"{name} {1e3 * row[f'{name}_seconds']:.3g} ms" for name in names)


if __name__ == "__main__":
    app.run(main)
