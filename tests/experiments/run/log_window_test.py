"""How far training may run ahead of the device, and what a progress line tells."""

import pathlib

import numpy as np
from absl.testing import absltest

from experiments.run.log_window import MAX_IN_FLIGHT, LogWindow, TrainedStep


class Metric:
    def __init__(self, step, waited_for):
        self.step, self.waited_for = step, waited_for

    def block_until_ready(self):
        self.waited_for.append(self.step)
        return self


class LogWindowTest(absltest.TestCase):
    def test_waits_for_all_but_the_last_steps(self):
        window = LogWindow(pathlib.Path(self.create_tempdir().full_path), 0)
        waited_for = []
        for step in range(1, 6):
            window.add(TrainedStep(step, 1, {}, {"loss": Metric(step, waited_for)}))
            self.assertEqual(waited_for, list(range(1, step + 1 - MAX_IN_FLIGHT)))

    def test_means_are_over_finite_steps(self):
        window = LogWindow(pathlib.Path(self.create_tempdir().full_path), max_skipped=1)
        for step, loss in enumerate((3.0, np.nan, 1.0), 1):
            metrics = {"loss": loss, "gradient_norm": loss, "finite": np.isfinite(loss)}
            window.add(TrainedStep(step, 1, {"index": np.arange(2)}, metrics))
        with self.assertLogs("experiments", "WARNING"):
            means = window.finish()
        want = {"loss": 2.0, "gradient_norm": 2.0, "finite": 1.0, "skipped_steps": 1.0}
        self.assertEqual(means, want)


if __name__ == "__main__":
    absltest.main()
