"""Lines that nobody reads any more."""

import contextlib
import io
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from experiments import reporting


class Unwritable(io.StringIO):
    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


class ReportingTest(parameterized.TestCase):
    @parameterized.parameters((BrokenPipeError(), False), (ValueError("no"), True))
    def test_only_a_closed_pipe_is_no_news(self, error, is_news):
        self.addCleanup(setattr, reporting.log, "handlers", reporting.log.handlers)
        with mock.patch.object(sys, "stdout", Unwritable(error)):
            reporting.set_up_logging()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            reporting.log.info("step 1")
        self.assertEqual("Logging error" in said.getvalue(), is_news)


if __name__ == "__main__":
    absltest.main()
