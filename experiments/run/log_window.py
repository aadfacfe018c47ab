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
        skipped: steps and evaluations of the whole run that were not finite.
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
            max_skipped: how many steps and evaluations of the whole run need not be finite.
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
            NonFiniteError: more steps were not finite than may be; the batches of those that may,
                and of the first that may not, are saved.
        """
        metrics = jax.device_get([trained.metrics for trained in self._in_flight])
        errors: list[NonFiniteError] = []
        for trained, values in zip(self._in_flight, metrics, strict=True):
            self.done.append({name: float(value) for name, value in values.items()})
            if values["finite"]:
                continue
            if errors:
                self.skipped += 1  # the device had gone on
                continue
            try:
                self.count(self._describe(trained, values))
            except NonFiniteError as error:
                errors.append(error)
        self._in_flight = []
        if errors:
            raise errors[0]

    def finish(self) -> dict[str, float]:
        """Reads all steps, returns the means over the finite ones, and starts a new window."""
        try:
            self.read()
        finally:
            done, self.done = self.done, []
        finite = [values for values in done if values["finite"]]
        return mean_metrics(finite or done) | {"skipped_steps": float(self.skipped)}

    def count(self, what: str) -> None:
        """Counts a step or an evaluation that was not finite, and says so.

        Raises:
            NonFiniteError: it is one more than may be.
        """
        self.skipped += 1
        if self.skipped > self._max_skipped:
            raise NonFiniteError(f"{what}; that is more than skip_nonfinite={self._max_skipped}")
        log.warning("%s; skipped, %d of at most %d", what, self.skipped, self._max_skipped)

    def _describe(self, trained: TrainedStep, values: Mapping[str, Any]) -> str:
        """Keeps the batch of a step that was not finite, and says what was wrong with it."""
        path = save_batch(self._workdir, trained.batch, trained.step, trained.num_write_steps)
        return (
            f"loss or gradient of step {trained.step} is not finite (loss {values['loss']}, "
            f"gradient norm {values['gradient_norm']}, samples {trained.batch['index'].tolist()}); "
            f"it changed no parameter; its batch is in {path}, see experiments.rerun"
        )


def mean_metrics(metrics: list[Mapping[str, Any]]) -> dict[str, float]:
    """Averages the metrics of several steps."""
    return {name: float(np.mean([m[name] for m in metrics], dtype=float)) for name in metrics[0]}
