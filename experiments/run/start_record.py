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

_ROOT = pathlib.Path(__file__).parents[2]
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
            starts = _starts(path)
    except ValueError as error:
        log.warning("%s A new one is begun.", error)
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


def _starts(path: pathlib.Path) -> list[Any]:
    """The starts that a run.json has.

    Raises:
        ValueError: it is none.
    """
    content = files.read_json(path)
    starts = content.get("starts") if isinstance(content, dict) else None
    if not isinstance(starts, list):
        raise ValueError(f"{path} has no list of starts.")
    return starts


def git_commit() -> str | None:
    """The commit of this code, with "-dirty" behind it if files were changed since.

    Files that git does not know do not count. None: there is no git, or this code is no clone, as
    where it is installed below a repository of somebody else.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or pathlib.Path(top).resolve() != _ROOT.resolve():
        return None
    return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def _git(*words: str) -> str | None:
    """What git prints of the folder of this code; None if it fails."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=_ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.removesuffix("\n") if done.returncode == 0 else None


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a clone that was not installed
            found[name] = None
    return found
