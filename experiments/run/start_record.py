"""run.json: with what, where and when each start of a run was made."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

from experiments.program import files
from experiments.program.console import log

_MOST_STARTS = 1000  # the last ones are kept
_PACKAGES = ("gradmem_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def record_start(workdir: pathlib.Path, first_step: int, devices: Sequence[str]) -> None:
    """Adds this start to run.json.

    Args:
        workdir: folder of the run.
        first_step: steps that were done before.
        devices: what progress lines call them.
    """
    path = workdir / "run.json"
    starts = []
    try:
        if path.exists():
            starts = list(files.read_json(path)["starts"])
    except (ValueError, TypeError, KeyError) as error:
        log.warning("%s; a new one is begun", error)
    start = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "first_step": first_step,
        "command": sys.orig_argv,
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "num_processes": jax.process_count(),
        "devices": list(devices),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version()} | _versions(),
    }
    files.write_results(path, {"starts": [*starts, start][-_MOST_STARTS:]})


def git_commit() -> str | None:
    """The commit of this code, with "-dirty" behind it if files were changed since; None: no git.

    Files that git does not know do not count.
    """
    words = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(
            words, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a clone that was not installed
            found[name] = None
    return found
