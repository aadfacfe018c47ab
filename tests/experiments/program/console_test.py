"""What programs print: progress lines, tables, and what happens when nobody reads them any more."""

import contextlib
import io
import pathlib
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.program import console, files, formatting
from experiments.run.progress import Progress


class Unwritable(io.StringIO):
    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


class ReportingTest(parameterized.TestCase):
    @parameterized.parameters((BrokenPipeError(), False), (ValueError("no"), True))
    def test_only_a_closed_pipe_is_no_news(self, error, is_news):
        self.addCleanup(setattr, console.log, "handlers", console.log.handlers)
        with mock.patch.object(sys, "stdout", Unwritable(error)):
            console.set_up_logging()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            console.log.info("step 1")
        self.assertEqual("Logging error" in said.getvalue(), is_news)

    @parameterized.parameters(
        ("results/alpha0.5", "results/alpha0.5.png"),
        ("results/scan", "results/scan.png"),
        ("results/scan.json", "results/scan.png"),
    )
    def test_endings_leave_other_dots(self, path, want):
        self.assertEqual(files.with_ending(pathlib.Path(path), ".png"), pathlib.Path(want))

    @parameterized.parameters((59.6, "1:00"), (245, "4:05"), (3600, "1:00:00"), (7445, "2:04:05"))
    def test_minutes(self, seconds, want):
        self.assertEqual(formatting.minutes(seconds), want)

    def test_markdown(self):
        table = formatting.markdown(["size", "s"], [[1, 0.12345], [None, 12345.6]])
        self.assertEqual(table, "| size | s |\n| --- | ---: |\n| 1 | 0.123 |\n|  | 12346 |")

    def test_speed_is_of_training_only(self):
        clock = mock.Mock(return_value=0.0)
        metrics = dict.fromkeys(("loss", "exact_match", "token_accuracy", "write_loss"), 0.5)
        with mock.patch.object(console.time, "monotonic", clock):
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

    def test_whole_numbers_are_whole(self):
        text = formatting.describe({"step": 2, "write_loss": 2.0})
        self.assertEqual(text, "step 2, write loss 2.0000")


if __name__ == "__main__":
    absltest.main()
