"""The steps since the last progress line: their metrics, and those that were not finite."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.program.console import log
from experiments.run.nonfinite import NonFiniteError, save_batch

MAX_IN_FLIGHT = 2  # steps: enough to keep a device busy, few enough to stop within them


class TrainedStep(NamedTuple):
    """A step that the device may still be working on.

    Attributes:
        step: its number, from 1.
        num_write_steps: K.
        batch: its batch on the host, with the sample numbers `index`.
        metrics: what the training step returned.
    """

    step: int
    num_write_steps: int
    batch: Mapping[str, np.ndarray]
    metrics: Mapping[str, Any]


class LogWindow:
    """Steps whose metrics are read late, so that the device need not wait.

    Attributes:
        skipped: steps of the whole run that were not finite.
        done: metrics of this window's steps that have been read, JSON-able.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        max_skipped: int,
        skipped: int = 0,
        done: Sequence[Mapping[str, float]] = (),
    ):
        """Opens a window; `skipped` and `done` are those of a run that goes on.

        Args:
            workdir: where batches of skipped steps are saved.
            max_skipped: how many steps of the whole run may be skipped.
            skipped: how many have been.
            done: metrics of the window's first steps.
        """
        self._workdir, self._max_skipped = workdir, max_skipped
        self._in_flight: list[TrainedStep] = []
        self.skipped, self.done = skipped, [*done]

    def add(self, trained: TrainedStep) -> None:
        """Adds a step, and waits until no more than `MAX_IN_FLIGHT` are being worked on."""
        self._in_flight.append(trained)
        if len(self._in_flight) > MAX_IN_FLIGHT:
            jax.block_until_ready(self._in_flight[-1 - MAX_IN_FLIGHT].metrics)

    def read(self) -> None:
        """Waits for the steps and reads their metrics.

        Raises:
            NonFiniteError: more steps were not finite than may be; their batches are saved.
        """
        metrics = jax.device_get([trained.metrics for trained in self._in_flight])
        for trained, values in zip(self._in_flight, metrics, strict=True):
            self.done.append({name: float(value) for name, value in values.items()})
            if not values["finite"]:
                self._skip(trained, values)
        self._in_flight = []

    def finish(self) -> dict[str, float]:
        """Reads all steps, returns the means over the finite ones, and starts a new window."""
        self.read()
        finite = [values for values in self.done if values["finite"]]
        means = mean_metrics(finite or self.done)
        self.done = []
        return means | {"skipped_steps": float(self.skipped)}

    def _skip(self, trained: TrainedStep, values: Mapping[str, Any]) -> None:
        path = save_batch(self._workdir, trained.batch, trained.step, trained.num_write_steps)
        self.skipped += 1
        what = (
            f"loss or gradient of step {trained.step} is not finite (loss {values['loss']}, "
            f"gradient norm {values['gradient_norm']}, samples {trained.batch['index'].tolist()}); "
            f"its batch is in {path}, see experiments.rerun"
        )
        if self.skipped <= self._max_skipped:
            log.warning("%s; skipped, %d of at most %d", what, self.skipped, self._max_skipped)
            return
        raise NonFiniteError(
            f"{what}. Parameters were left as before that step; checkpoints are whole. Lower "
            "optimizer.learning_rate or model.write_learning_rate, or clip; or let more than "
            f"skip_nonfinite={self._max_skipped} steps be skipped."
        )


def mean_metrics(metrics: list[Mapping[str, Any]]) -> dict[str, float]:
    """Averages the metrics of several steps."""
    return {name: float(np.mean([m[name] for m in metrics], dtype=float)) for name in metrics[0]}
