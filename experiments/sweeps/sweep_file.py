"""The file of a sweep: its runs, checked, and those of one worker."""

import importlib.util
import re
from collections.abc import Sequence
from typing import Any

from experiments.program.startup import find_file
from experiments.results.finished_runs import name_pattern
from experiments.run.build import build
from experiments.sweeps.run_list import Run
from gradmem_jax.checks import require


def _load(path: str, function: str, what: str) -> Any:
    """Returns a function of a Python file."""
    file = find_file(path)
    require(file.is_file(), f"{what} {path!r} is not a file; see experiments/{what}s.")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    require(spec is not None, f"{what} {path!r} is not a Python file; its name must end in .py.")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    require(found is not None, f"{what} {path!r} has no {function}(); define it there.")
    return found


def load_runs(path: str) -> list[Run]:
    """Reads a sweep file and checks every run in it, its configuration too.

    Raises:
        ValueError: what is wrong, and with which run.
    """
    runs = _load(path, "get_runs", "sweep")()
    require(
        isinstance(runs, list) and runs != [] and all(isinstance(run, Run) for run in runs),
        f"get_runs() of {path!r} must return a list of at least one "
        "experiments.sweeps.run_list.Run.",
    )
    names = [run.name for run in runs]
    for i, run in enumerate(runs):
        part = r"\w[\w.=+-]*"
        require(
            re.fullmatch(rf"{part}(/{part})*", run.name) is not None,
            f"run name {run.name!r} is not a folder under --root: use letters, digits, _.=+-.",
        )
        require(
            run.name not in names[:i], f"two runs are named {run.name!r}; give each its own name."
        )
        require(
            not run.after or run.after in names[:i],
            f"run {run.name!r} comes after {run.after!r}, which is no run listed before it; list "
            "the runs of a chain in their order, without cycles.",
        )
        _check_config(run)
    return runs


def _check_config(run: Run) -> None:
    """Builds what the run's configuration describes, as training will."""
    path, _, argument = run.config.partition(":")
    get_config = _load(path, "get_config", "config")
    unset = [name for name, value in run.overrides.items() if value is None]
    require(
        not unset,
        f"run {run.name!r} sets {unset} to None, which a command line cannot; do so in a "
        "configuration file of your own.",
    )
    try:
        config = get_config(argument) if argument else get_config()
        config.lock().update_from_flattened_dict(run.overrides)
        build(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"run {run.name!r} cannot be configured, correct {run.config!r} or its overrides "
            f"{dict(run.overrides)}: {error}"
        ) from error


def select(runs: Sequence[Run], index: int, count: int, only: str = "") -> list[Run]:
    """Returns the runs of worker `index` out of `count`, of those whose name has `only`.

    Raises:
        ValueError: `index`, `count` or `only` is wrong.
    """
    require(
        0 <= index < count,
        f"--index={index} must be from 0 to {count - 1}, as --count={count}; give every worker "
        "another --index.",
    )
    pattern = name_pattern(only)
    require(
        any(pattern.search(run.name) for run in runs),
        f"--only={only!r} is in the name of no run; names look like {runs[0].name!r}.",
    )
    chains: dict[str, list[Run]] = {}  # by the name of their first run
    first: dict[str, str] = {}
    for run in runs:
        first[run.name] = first[run.after] if run.after else run.name
        if pattern.search(run.name):
            chains.setdefault(first[run.name], []).append(run)
    return [run for part in list(chains.values())[index::count] for run in part]
