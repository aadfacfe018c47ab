"""What programs print, and what happens when nobody reads it any more."""

import contextlib
import io
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.program import console


class Unwritable(io.StringIO):
    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


class ConsoleTest(parameterized.TestCase):
    @parameterized.parameters((BrokenPipeError(), False), (ValueError("no"), True))
    def test_only_a_closed_pipe_is_no_news(self, error, is_news):
        self.addCleanup(setattr, console.log, "handlers", console.log.handlers)
        with mock.patch.object(sys, "stdout", Unwritable(error)):
            console.set_up_logging()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            console.log.info("step 1")
        self.assertEqual("Logging error" in said.getvalue(), is_news)


if __name__ == "__main__":
    absltest.main()
