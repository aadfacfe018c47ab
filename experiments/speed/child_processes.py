"""Settings measured one after the other, each in a child process."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.program.console import log
from experiments.speed.setting import Setting
from gradmem_jax.checks import require_integer

Measured = dict[str, Any]


def limit_threads(threads: int | None) -> int:
    """Keeps this process and its children on so many CPUs.

    Args:
        threads: how many; None leaves them all.

    Returns:
        The number of CPUs.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if threads is not None:
        require_integer("threads", threads, 1)
        os.sched_setaffinity(0, cpus[:threads])
    return len(os.sched_getaffinity(0))


def measure(kind: str, setting: Setting, seconds: float | None = None) -> Measured:
    """Measures one setting; see `experiments.speed.measure` for the kinds.

    Args:
        kind: what is measured.
        setting: of what.
        seconds: that it may take; None does not limit it.

    Returns:
        What was measured; or `error`, what went wrong, so that a setting that does not fit into
        memory does not end a table.
    """
    fields = json.dumps(dataclasses.asdict(setting))
    return run_json([sys.executable, "-m", "experiments.speed.measure", kind, fields], seconds)


def run_json(command: Sequence[str], seconds: float | None = None) -> Measured:
    """Runs a program whose last line of output is JSON.

    Args:
        command: the program and its arguments.
        seconds: that it may take; None does not limit it.

    Returns:
        The JSON, or `error`.
    """
    before = signal.signal(signal.SIGTERM, _leave)  # with the program, which `run` ends then
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"ended after {seconds:.0f} s, the time that it had"}
    finally:
        signal.signal(signal.SIGTERM, before)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return {"error": f"ended by {name}, perhaps for want of memory"}
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode:
        return {"error": lines[-1] if lines else f"exit status {done.returncode}"}
    try:
        return json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        return {"error": "the program printed no JSON"}


def _leave(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


def summarise(rounds: Sequence[Measured]) -> Measured:
    """The rounds of one setting as one: median time, highest peak."""
    summary = dict(next((r for r in rounds if "error" in r), rounds[0]))
    if "seconds" in summary:
        summary["seconds"] = float(np.median([r["seconds"] for r in rounds]))
        summary["peak_mib"] = max(r["peak_mib"] for r in rounds)
    return summary


def report(name: str, measured: Measured) -> None:
    """Prints the progress line of a setting."""
    units = {"seconds": "s", "mib": "MiB", "gflop_per_second": "GFLOP/s"}
    parts = []
    for field in ("seconds", "gflop_per_second", "peak_mib", "temporary_mib", "compile_seconds"):
        if field in measured:
            unit = next(text for ending, text in units.items() if field.endswith(ending))
            label = field.removesuffix("_mib").removesuffix("_seconds").replace("_", " ")
            label = "" if field in ("seconds", "gflop_per_second") else label + " "
            parts.append(f"{label}{measured[field]:.4g} {unit}")
    log.info("%s: %s", name, measured.get("error") or ", ".join(parts))
