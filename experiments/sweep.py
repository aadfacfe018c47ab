r"""Trains the runs of a sweep one after the other, each as a process of experiments.train.

Run again with the same flags, a stopped sweep goes on: finished runs are skipped, others resume.
A sweep can be split over processes and machines that share --root: chains of runs that start from
each other stay together. Example, the first of two workers:

  python -m experiments.sweep --sweep=experiments/sweeps/kv_small.py --root=runs/kv_small \
      --index=0 --count=2
"""

import collections
import importlib.util
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

import jax
from absl import flags

from experiments.program import console, files, formatting, locks, startup
from experiments.program.console import log
from experiments.results.finished_runs import name_pattern
from experiments.run.build import build
from experiments.run.plan import LOWER_IS_BETTER
from experiments.sweeps.run_list import Run
from gradmem_jax.checks import require

_SWEEP = flags.DEFINE_string(
    "sweep", None, "Python file whose get_runs() lists the runs (required).", required=True
)
_ROOT = flags.DEFINE_string("root", None, "Folder of the runs' folders (required).", required=True)
_ONLY = flags.DEFINE_string("only", "", "Regular expression; only runs whose name has it.")
_INDEX = flags.DEFINE_integer("index", 0, "Number of this worker, from 0.")
_COUNT = flags.DEFINE_integer("count", 1, "Workers that share the sweep.", lower_bound=1)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands and start nothing.")

LOCK = "sweep.lock"  # in the folder of a run


def _find(path: str) -> pathlib.Path:
    """A path as it is or, if nothing is there, below the folder that experiments/ lies in."""
    ours = pathlib.Path(__file__).parents[1] / path
    return ours if ours.exists() and not pathlib.Path(path).exists() else pathlib.Path(path)


def _load(path: str, function: str, what: str) -> Any:
    """Returns a function of a Python file."""
    file = _find(path)
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
        f"get_runs() of {path!r} must return a list of at least one experiments.sweep.Run.",
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


def command(run: Run, root: pathlib.Path) -> list[str]:
    """Returns the command that trains a run."""
    path, colon, argument = run.config.partition(":")
    fields = dict(run.overrides)
    if run.after:
        fields["init_from"] = str(root / run.after)
    return [
        *(sys.executable, "-m", "experiments.train"),
        *(f"--workdir={root / run.name}", f"--config={_find(path)}{colon}{argument}"),
        *(f"--config.{field}={value}" for field, value in fields.items()),
    ]


class Result(NamedTuple):
    """What a run came to: its `config.best_metric`, and the value of that."""

    metric: str
    value: float

    def __str__(self) -> str:
        name = self.metric.replace("_", " ")
        is_loss = self.metric in LOWER_IS_BETTER
        return f"{name} {self.value:.3f}" if is_loss else f"{name} {self.value:.1%}"

    def reached(self, bar: float) -> bool:
        """Whether it is as good as `bar`, a value of the same metric."""
        return self.value <= bar if self.metric in LOWER_IS_BETTER else self.value >= bar


def finished(folder: pathlib.Path) -> Result | None:
    """Returns the result of a finished run, None if it is not finished."""
    path = folder / "metrics.json"
    if not path.exists():
        return None
    try:
        metrics = files.read_json(path)
        name = metrics.get("best_metric", "exact_match")
        return Result(name, float(metrics[name]))
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%r); its run counts as not finished", path, error)
        return None


def why_not(run: Run, root: pathlib.Path) -> str:
    """Says why a run must not be started now; "" if it may be."""
    result = finished(root / run.name)
    if result is not None:
        return f"finished before, {result}"
    if not run.after:
        return ""
    result = finished(root / run.after)
    if result is None:
        return f"skipped: it starts from {run.after}, which is not finished"
    bar = run.stop_chain_below
    if bar is not None and not result.reached(bar):
        wanted = result._replace(value=bar)
        return f"skipped: {run.after} has {result}; to go on it takes {wanted}"
    return ""


def execute(words: Sequence[str], path: pathlib.Path, held: TextIO) -> int:
    """Runs a command, its output appended to a file, and stops it when this program is stopped."""
    with open(path, "a") as out:
        print(f"$ {shlex.join(words)}", file=out, flush=True)
        # The child holds the lock as well: it may outlive a killed sweep.
        keep = (held.fileno(),)
        with subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, pass_fds=keep) as child:
            try:
                return child.wait()
            finally:
                if child.poll() is None:
                    log.info("stopping; the same command will go on from the last checkpoint")
                    child.terminate()
                    try:
                        child.wait(timeout=120)  # it finishes a step and saves
                    except subprocess.TimeoutExpired:
                        child.kill()


def run_all(runs: Sequence[Run], root: pathlib.Path) -> list[str]:
    """Trains runs in their order and reports each in a line.

    Args:
        runs: what `select` returned.
        root: folder of the runs' folders.

    Returns:
        The names of runs that failed.
    """
    failed: list[str] = []
    seconds: list[float] = []
    for i, run in enumerate(runs, 1):
        place, path = f"{i}/{len(runs)} {run.name}", root / run.name / "train.log"
        reason = why_not(run, root)
        if not reason:
            with locks.hold(root / run.name / LOCK) as held:
                reason = why_not(run, root) if held else "skipped: another worker is training it"
                if held and not reason:
                    log.info("%s | starts, see %s", place, path)
                    started = time.monotonic()
                    code = execute(command(run, root), path, held)
                    seconds.append(time.monotonic() - started)
        if reason:
            log.info("%s | %s", place, reason)
            continue
        result = finished(root / run.name)
        if code or result is None:
            failed.append(run.name)
            with open(path, errors="replace") as lines:
                tail = "".join(collections.deque(lines, maxlen=15))
            log.error("%s | failed with exit status %d; %s ends with\n%s", place, code, path, tail)
            continue
        to_do = sum(finished(root / later.name) is None for later in runs[i:])
        left = formatting.minutes(to_do * sum(seconds) / len(seconds))
        log.info(
            "%s | %s | %s | left about %s", place, result, formatting.minutes(seconds[-1]), left
        )
    not_finished = [run.name for run in runs if finished(root / run.name) is None]
    log.info("%d of %d runs are finished", len(runs) - len(not_finished), len(runs))
    if not_finished:
        log.info("not finished: %s", ", ".join(not_finished))
    return failed


def main(_: Sequence[str]) -> int:
    """Runs the program."""
    console.set_up_logging()
    jax.config.update("jax_platforms", "cpu")  # of this process: accelerators are for the children
    runs = select(load_runs(_SWEEP.value), _INDEX.value, _COUNT.value, _ONLY.value)
    root = pathlib.Path(_ROOT.value)
    if _DRY_RUN.value:
        say = lambda run: (
            f"# {run.name} is finished"
            if finished(root / run.name)
            else shlex.join(command(run, root))
        )
        print("\n".join(map(say, runs)))
        return 0
    files.output_folder("root", root)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    failed = run_all(runs, root)
    if failed:
        log.error("failed: %s", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    startup.run(main)
