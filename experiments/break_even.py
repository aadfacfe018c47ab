r"""When a WRITE pays: one WRITE and N READs against a cached full context and N queries to it.

  python -m experiments.break_even --out=runs/break_even --write_steps=1

For every context length it measures the latency of a WRITE, of a READ, of the prefill that fills a
key-value cache, and of a query to that cache; the rest is arithmetic. Sizes of SmolLM2 135M:

  python -m experiments.break_even --out=runs/smollm2 --width=576 \
      --num_layers=30 --num_heads=9 --num_kv_heads=3 --mlp_width=1536 \
      --vocab_size=49152 --tied_head
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from absl import flags

from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.speed import child_processes, figures, setting
from experiments.speed.latency import crossing, describe, tables, totals

_CONTEXT_TOKENS = flags.DEFINE_list(
    "context_tokens", ["64", "128", "256", "512", "1024", "2048", "4096"], "Context lengths c."
)
_QUERIES = flags.DEFINE_list(
    "queries", [str(2**i) for i in range(11)], "Numbers of queries N to a context."
)
_THREADS = flags.DEFINE_integer("threads", None, "CPUs to run on; default: all.")
_OUT = flags.DEFINE_string(
    "out", None, "Path of the results, without suffix (required).", required=True
)
_make_setting = setting.define_flags(
    without=(
        "context_tokens",
        "queries_per_context",
        "meta_gradient",
        "remat",
        "cpu_devices",
        "micro_batches",
    ),
    batch_size=16,
    query_tokens=24,
    write_steps=1,
)
flags.adopt_module_key_flags(setting)


def main(_: Sequence[str]) -> int:
    """Runs the program."""
    console.set_up_logging()
    out = pathlib.Path(_OUT.value)
    files.output_file("out", files.with_ending(out, ".json"))
    lengths = startup.integers("context_tokens", _CONTEXT_TOKENS.value)
    queries = startup.integers("queries", _QUERIES.value)
    settings = [_make_setting(context_tokens=length) for length in lengths]
    threads = child_processes.limit_threads(_THREADS.value)
    found: dict[int, child_processes.Measured] = {}
    report = {
        "setting": dataclasses.asdict(settings[0]) | {"context_tokens": lengths},
        "threads": threads,
        "queries": queries,
        "by_context_tokens": found,
    }
    for length, measured in zip(lengths, settings, strict=True):
        row = child_processes.measure("break_even", measured)
        if "error" not in row:
            row |= {"crossing": crossing(row), "total_seconds": totals(row, queries)}
        found[length] = row
        files.write_results(files.with_ending(out, ".json"), report)  # a later one may be stopped
        log.info("c = %d: %s", length, describe(row))
    rows = [*found.items()]
    files.with_ending(out, ".md").write_text(tables(rows, queries))
    log.info("%s\nwrote %s and .md", tables(rows, queries), files.with_ending(out, ".json"))
    drawn = {length: row for length, row in rows if "error" not in row}
    if not drawn:
        log.error("all context lengths failed; there is nothing to draw")
        return 1
    figures.break_even(files.with_ending(out, ".png"), queries, drawn)
    log.info("drew %s", files.with_ending(out, ".png"))
    return 0


if __name__ == "__main__":
    startup.run(main)
