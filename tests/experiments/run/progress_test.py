"""Progress lines of a run."""

import pathlib
import time
from unittest import mock

from absl.testing import absltest

from experiments.run.progress import Progress


class ProgressTest(absltest.TestCase):
    def test_speed_is_of_training_only(self):
        clock = mock.Mock(return_value=0.0)
        metrics = dict.fromkeys(("loss", "exact_match", "token_accuracy", "write_loss"), 0.5)
        with mock.patch.object(time, "monotonic", clock):
            progress = Progress(pathlib.Path(), 100, 8, first_step=0, write=False)
            clock.return_value = 30.0
            progress.leave_out(20.0)  # compiling
            with self.assertLogs("experiments", "INFO") as first:
                progress.train(10, "N = 4", metrics)
            clock.return_value = 90.0
            progress.restart_clock(10)  # after an evaluation
            clock.return_value = 94.0
            with self.assertLogs("experiments", "INFO") as second:
                progress.train(12, "N = 4", metrics)
        self.assertEndsWith(first.output[0], "1000 ms/step, 8 samples/s | at most 1:30 left")
        self.assertEndsWith(second.output[0], "2000 ms/step, 4 samples/s | at most 2:56 left")


if __name__ == "__main__":
    absltest.main()
