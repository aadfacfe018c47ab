"""Where a run's scalars go, by the names of `config.log_to`."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.configs.default import require_known
from experiments.program.console import log
from experiments.run import wandb_writer
from experiments.run.scalar_writer import RunToWrite, ScalarWriter
from experiments.run.tensorboard_writer import TensorBoardWriter
from gradmem_jax.checks import require


def _nothing_missing() -> None:
    """What a writer checks that needs no package of its own."""


class Writer(NamedTuple):
    """A way to keep scalars.

    Attributes:
        open: opens it for a run.
        check: raises ValueError if it cannot be opened here, such as without its package. It is
            asked before anything is compiled.
    """

    open: Callable[[RunToWrite], ScalarWriter]
    check: Callable[[], object] = _nothing_missing


TENSORBOARD = "tensorboard"
WRITERS = {
    TENSORBOARD: Writer(TensorBoardWriter),
    "wandb": Writer(wandb_writer.WandbWriter, wandb_writer.import_wandb),
}


def check_writers(names: Sequence[str]) -> None:
    """Refuses writers that are not known, stand twice, or cannot be opened here.

    Raises:
        ValueError: there is one.
    """
    for name in names:
        several = " Several are a tuple: --config.log_to=\"('tensorboard', 'wandb')\"."
        require_known("log_to", name, WRITERS, several if "," in name else "")
        require(names.count(name) == 1, f"log_to={names} has {name!r} twice; name it once.")
        WRITERS[name].check()


def open_writers(names: Sequence[str], run: RunToWrite) -> ScalarWriter:
    """Opens writers as one."""
    if TENSORBOARD not in names:
        log.info("no TensorBoard events (log_to=%s): experiments.curves cannot draw this", names)
    return _Together(names, run)


class _Together:
    """Several writers as one; whatever happens to one, all are closed."""

    def __init__(self, names: Sequence[str], run: RunToWrite) -> None:
        """Opens them."""
        self._writers: list[ScalarWriter] = []
        with contextlib.ExitStack() as stack:
            for name in names:
                self._writers.append(WRITERS[name].open(run))
                stack.callback(self._writers[-1].close)
            self._opened = stack.pop_all()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes to all of them."""
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        """Closes all of them."""
        self._opened.close()
