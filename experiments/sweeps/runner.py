"""Runs of a sweep, trained one after the other, each as a process of experiments.train."""

import collections
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from experiments.program import files, formatting, locks
from experiments.program.console import log
from experiments.program.startup import find_file
from experiments.run.plan import BEST_METRICS, LOWER_IS_BETTER
from experiments.run.workdir import trained_since
from experiments.sweeps.run_list import Run
from gradmem_jax.checks import require_choice, require_instance, require_number
from gradmem_jax.foreign_text import one_line
from gradmem_jax.storage.writing import open_to_append

LOCK = "sweep.lock"  # in the folder of a run
_POLL_SECONDS = 5.0  # between looks at a run that a killed sweep has left


def command(run: Run, root: pathlib.Path) -> list[str]:
    """Returns the command that trains a run."""
    path, colon, argument = run.config.partition(":")
    fields = dict(run.overrides)
    if run.after:
        fields["init_from"] = str(root / run.after)
    words = [
        sys.executable,
        "-m",
        "experiments.train",
        f"--workdir={root / run.name}",
        f"--config={find_file(path)}{colon}{argument}",
    ]
    return words + [f"--config.{field}={value}" for field, value in fields.items()]


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
        require_instance(str(path), metrics, dict)
        if trained_since(folder, metrics):
            return None
        name = metrics.get("best_metric", "exact_match")
        require_choice("best_metric", name, BEST_METRICS)
        return Result(name, require_number(name, metrics.get(name)))
    except ValueError as error:
        log.warning("%s; its run counts as not finished", one_line(str(error)))
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
    with open_to_append(path) as out:
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


def _wait_for_orphan(lock: pathlib.Path, place: str) -> None:
    """Waits for a run that a killed sweep has left behind; it goes on by itself."""
    if locks.is_orphaned(lock):
        log.info("%s | is trained since a sweep that was killed; waiting for it to end", place)
    while locks.is_orphaned(lock):
        time.sleep(_POLL_SECONDS)


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
            lock = root / run.name / LOCK
            _wait_for_orphan(lock, place)
            with locks.hold(lock) as held:
                other = f"skipped: another worker is training it, {locks.holder(lock)}"
                reason = why_not(run, root) if held else other
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
