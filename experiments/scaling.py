r"""How a training step grows: time, memory and compile time, one size changed at a time.

  python -m experiments.scaling --out=runs/scaling

Writes a JSON file, the tables as Markdown and a figure. On a larger machine give the base and the
values of your own:

  python -m experiments.scaling --out=runs/scaling --batch_size=64 --width=768 \
      --num_layers=12 --num_heads=12 --vary=context_tokens=256,1024,4096 \
      --vary=write_steps=1,2,4,8,16
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from absl import flags

from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.speed import child_processes, figures, setting
from experiments.speed.growth import SYMBOLS, growth, memory_by_context, parse_sweeps, tables
from experiments.speed.setting import Setting
from gradmem_jax.checks import AUTOMATIC, require

_VARY = flags.DEFINE_multi_string(
    "vary",
    [
        "context_tokens=64,128,256,512,1024,2048,4096",
        "write_steps=1,2,4,8,16",
        "num_memory_tokens=1,2,4,8,16,32",
        "batch_size=1,2,4,8,16",
        "width=32,64,128,256",
    ],
    "A size and its values: NAME=V1,V2,...; may be given several times.",
)
_THREADS = flags.DEFINE_integer("threads", None, "CPUs to run on; default: all.")
_OUT = flags.DEFINE_string(
    "out", None, "Path of the results, without suffix (required).", required=True
)
_base_setting = setting.define_flags(
    context_tokens=256, batch_size=2, width=64, num_layers=2, num_heads=2, repeats=2
)
flags.adopt_module_key_flags(setting)


def main(_: Sequence[str]) -> int:
    """Runs the program."""
    console.set_up_logging()
    out = pathlib.Path(_OUT.value)
    files.output_file("out", files.with_ending(out, ".json"))
    base, sweeps = _base_setting(), parse_sweeps(_VARY.value)
    require(
        base.micro_batches != AUTOMATIC,
        f"--micro_batches={AUTOMATIC} would change with the sizes; give a number.",
    )
    settings = {
        name: [(value, Setting(**(vars(base) | {name: value}))) for value in values]
        for name, values in sweeps.items()
    }
    threads = child_processes.limit_threads(_THREADS.value)
    matmul = child_processes.measure("matmul", base) if base.repeats else {}
    known: dict[Setting, child_processes.Measured] = {}
    rows: dict[str, list[tuple[int, child_processes.Measured]]] = {}
    for name, values in settings.items():
        rows[name] = []
        for value, changed in values:
            if changed not in known:
                known[changed] = child_processes.measure("step", changed)
                child_processes.report(f"{SYMBOLS[name]} = {value}", known[changed])
            rows[name].append((value, known[changed]))
            report = {
                "base": dataclasses.asdict(base),
                "threads": threads,
                "matmul": matmul,
                "rows": rows,
                "growth": {name: growth(points) for name, points in rows.items()},
                "memory_by_context": memory_by_context(base, rows.get("context_tokens", [])),
            }
            # Now, as a later one may be stopped.
            files.write_results(files.with_ending(out, ".json"), report)
    files.with_ending(out, ".md").write_text(tables(report))
    log.info("%s\nwrote %s and .md", tables(report), files.with_ending(out, ".json"))
    if all("error" in measured for measured in known.values()):
        log.error("all sizes failed; there is nothing to draw")
        return 1
    lines = {SYMBOLS[name]: points for name, points in rows.items()}
    figures.growth(files.with_ending(out, ".png"), lines)
    log.info("drew %s", files.with_ending(out, ".png"))
    return 0


if __name__ == "__main__":
    startup.run(main)
