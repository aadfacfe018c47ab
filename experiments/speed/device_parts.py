"""What is measured on a device that is lent for some minutes, the most valuable first."""

import dataclasses
import functools
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from experiments.program import files, formatting
from experiments.speed import child_processes
from experiments.speed.child_processes import Measured
from experiments.speed.reference import Reference
from experiments.speed.setting import Setting
from gradmem_jax.checks import require
from gradmem_jax.storage.writing import write_text

_LEAST_SECONDS = 20  # that a part is begun with
_SAVING_SECONDS = 20  # that a training run has to save itself
_LARGEST_PART = 0.25  # of all time, for a part other than training


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the work is.

    Attributes:
        paper: the paper's KV model and batch.
        write_steps: K of its steps.
        text: a language model of GPT-2's size, 16 contexts of 1,024 tokens.
        attention: shape [B, S, H, Hkv, D] and dtype of attention alone.
        training: flags of the training run.
    """

    paper: Setting
    write_steps: tuple[int, ...]
    text: Setting
    attention: dict[str, Any]
    training: tuple[str, ...]


FULL = Sizes(
    paper=Setting(),
    write_steps=(1, 2, 5),
    text=Setting(
        context_tokens=1024,
        query_tokens=24,
        batch_size=16,
        write_steps=1,
        width=768,
        num_layers=12,
        num_heads=12,
        vocab_size=50257,
        tied_head=True,
        scan_layers=True,
        micro_batches=1,
        repeats=3,
    ),
    attention={"shape": [8, 2048, 32, 8, 64], "dtype": "bfloat16", "repeats": 5},
    training=(
        "--config=experiments/configs/kv_scaling.py:n16",
        "--config.lm.width=128",
        "--config.optimizer.learning_rate=1e-3",
    ),
)
_TINY = Setting(
    context_tokens=9, query_tokens=6, batch_size=2, width=8, num_layers=1, num_heads=2, repeats=1
)
TINY = Sizes(
    paper=_TINY,
    write_steps=(1,),
    text=_TINY,
    attention={"shape": [1, 9, 2, 1, 8], "dtype": "float32", "repeats": 1},
    training=(
        "--config=experiments/configs/kv_scaling.py:n2",
        "--config.lm.width=8",
        "--config.lm.num_layers=1",
        "--config.batch_size=8",
    ),
)


class Part(NamedTuple):
    """Something to measure.

    Attributes:
        name: what tables call it.
        measure: from seconds that it may take to what was found, or `error`.
    """

    name: str
    measure: Callable[[float], Measured]


def parts(sizes: Sizes, reference: Reference | None, out: pathlib.Path) -> Iterator[Part]:
    """The parts, in the order in which they are measured.

    Args:
        sizes: how large the work is.
        reference: the official code, measured in front of each of our steps; None leaves it out.
        out: where the training run goes.
    """
    yield Part("golden cases", functools.partial(_child, ["tests.golden_errors"]))
    steps = {
        f"paper's KV model, K = {k}": dataclasses.replace(sizes.paper, write_steps=k)
        for k in sizes.write_steps
    }
    steps["GPT-2's size, 16 x 1,024, K = 1"] = sizes.text
    for name, setting in steps.items():
        if reference is not None:
            yield Part(f"{name}, official", functools.partial(reference.measure, "step", setting))
        yield Part(name, functools.partial(child_processes.measure, "step", setting))
    for implementation in ("xla", "auto", "pallas"):
        fields = json.dumps(sizes.attention | {"implementation": implementation})
        command = ["experiments.speed.attention", fields]
        yield Part(f"attention, {implementation}", functools.partial(_child, command))
    yield Part("training", functools.partial(_train, sizes.training, out / "run"))


def measure_all(all_parts: Iterator[Part], out: pathlib.Path, seconds: float) -> list[Measured]:
    """Measures parts until the time is over; each result is written as it comes.

    Args:
        all_parts: what is measured; the last has all the time that is left.
        out: folder of results.json and results.md.
        seconds: that all may take.

    Raises:
        ValueError: the folder has results already, and perhaps the training run of them.
    """
    results = out / "results.json"
    require(
        not results.exists(),
        f"--out={out} has results already; choose another folder, since its run would not train "
        "again.",
    )
    ends, found = time.monotonic() + seconds, list[Measured]()
    for part in all_parts:
        left = ends - time.monotonic()
        limit = left if part.name == "training" else min(left, _LARGEST_PART * seconds)
        started = time.monotonic()
        measured = part.measure(limit) if left >= _LEAST_SECONDS else {"error": "no time was left"}
        took = round(time.monotonic() - started, 1)
        found.append({"part": part.name, "took_seconds": took} | measured)
        child_processes.report(part.name, measured)
        files.write_results(results, {"parts": found})
        write_text(out / "results.md", table(found) + "\n")
    return found


def table(found: list[Measured]) -> str:
    """Formats what was found, a line a part."""
    head = ["part", "s a call", "peak MiB", "compile s", "found"]
    names = ("part", "took_seconds", "seconds", "peak_mib", "compile_seconds", "cases", "error")
    lines = []
    for row in found:
        others = {key: value for key, value in row.items() if key not in names}
        text = row.get("error") or ", ".join(f"{key} {value}" for key, value in others.items())
        numbers = (row.get(name) for name in ("seconds", "peak_mib", "compile_seconds"))
        lines.append([row["part"], *numbers, text.replace("|", "/")])
    return formatting.markdown(head, lines)


def _child(module_and_arguments: list[str], seconds: float) -> Measured:
    return child_processes.run_json([sys.executable, "-m", *module_and_arguments], seconds)


def _train(flags: tuple[str, ...], workdir: pathlib.Path, seconds: float) -> Measured:
    """Trains as long as there is time, has the run save itself, and says how far it came."""
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *flags]
    log = workdir.with_name("training.log")
    with log.open("w") as file:
        run = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            run.wait(max(seconds - _SAVING_SECONDS, 1))
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGTERM)
            try:
                run.wait(_SAVING_SECONDS)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
    steps = [line for line in log.read_text().splitlines() if "s/step" in line]  # or ms/step
    if not steps:
        return {"error": f"no step was reported; see {log.name}"}
    return {"last_line": steps[-1].strip()}
