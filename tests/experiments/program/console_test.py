"""What programs print, and what happens when nobody reads it any more."""

import contextlib
import io
import logging
import os
import pathlib
import re
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.program import console
from tests.programs import ROOT


class Unwritable(io.StringIO):
    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


class ConsoleTest(parameterized.TestCase):
    @parameterized.parameters(
        (BrokenPipeError(), False), (OSError(28, "full"), False), (ValueError("no"), True)
    )
    def test_a_closed_pipe_and_a_full_disk_are_no_news(self, error, is_news):
        self.addCleanup(setattr, console.log, "handlers", console.log.handlers)
        with mock.patch.object(sys, "stdout", Unwritable(error)):
            console.set_up_logging()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            console.log.info("step 1")
        self.assertEqual("Logging error" in said.getvalue(), is_news)
        full = isinstance(error, OSError) and error.errno == 28
        with self.assertRaises(OSError) if full else contextlib.nullcontext():
            console.check()

    def test_only_the_console_prints(self):
        prints = [
            f"{path.name}:{number}"
            for path in (ROOT / "experiments").rglob("*.py")
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if re.search(r"\bprint\((?!.*file=)", line) or "sys.stdout.write" in line
        ]
        allowed = {"console.py", "reference_runner.py"}  # the latter runs in an environment alone
        self.assertEmpty([place for place in prints if place.split(":")[0] not in allowed])

    def test_what_is_said_steers_no_terminal(self):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            console.say("\x1b[2J a\nb")
        self.assertEqual(said.getvalue(), "\\u001b[2J a\nb\n")

    @parameterized.parameters(
        ("absl", "/lib/orbax/checkpoint/_src/futures/future.py", False),
        ("asyncio", "/lib/asyncio/base_events.py", False),
        ("absl", "/lib/jax/_src/xla_bridge.py", True),
    )
    def test_what_orbax_fails_at_is_said_once(self, name, path, is_news):
        record = logging.LogRecord(name, logging.ERROR, path, 1, "failed", None, None)
        self.assertEqual(console._is_news(record), is_news)

    def test_libraries_warn_in_the_file_of_a_run_and_fail_in_a_line(self):
        self.addCleanup(setattr, console.log, "handlers", console.log.handlers)
        self.addCleanup(logging.root.removeHandler, console._libraries)
        self.addCleanup(logging.captureWarnings, False)
        path = pathlib.Path(self.create_tempdir().full_path) / "train.log"
        with contextlib.redirect_stdout(io.StringIO()) as said:
            console.set_up_logging()
            logging.getLogger("orbax").warning("no %s", "metrics")  # before there is a file
            with console.log_file(path):
                console.log.info("step 1")
                logging.getLogger("jax").error("no\nroom")
                logging.getLogger("gradmem_jax").info("not ours to say")
            console.log.info("step 2")
        date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
        want = f"^{date} orbax: no metrics\n{date} step 1\n{date} jax: no\nroom\n$"
        self.assertRegex(path.read_text(), want)
        time = r"\d\d:\d\d:\d\d"
        want = rf"^{time} step 1\n{time} jax: no\\nroom\n{time} step 2\n$"
        self.assertRegex(said.getvalue(), want)

    def test_why_a_run_ended_is_in_its_file_alone(self):
        path = pathlib.Path(self.create_tempdir().full_path) / "train.log"
        self.addCleanup(setattr, console.log, "handlers", console.log.handlers)
        console.log.handlers = []
        said = self.enterContext(contextlib.redirect_stderr(io.StringIO()))
        with self.assertRaisesRegex(ValueError, "too large"), console.log_file(path):
            raise ValueError("size=9 is too large;\nmake it 8.")
        want = r"^\S+ \S+ ended by ValueError: size=9 .*;\\nmake it 8\.\n$"
        self.assertRegex(path.read_text(), want)
        self.assertEqual(said.getvalue(), "")
        out = self.enterContext(open(path, "w"))
        with (
            self.assertRaises(ValueError),
            contextlib.redirect_stdout(out),
            console.log_file(path),
        ):
            raise ValueError("whoever catches it says it")
        self.assertEqual(path.read_text(), "")

    def test_an_output_that_is_the_file_gets_lines_once(self):
        path = pathlib.Path(self.create_tempdir().full_path) / "train.log"
        self.addCleanup(setattr, console.log, "handlers", console.log.handlers)
        with open(path, "a") as out, contextlib.redirect_stdout(out), console.log_file(path):
            console.log.handlers = [console._Lines(out)]
            console.log.warning("step 1")
        self.assertEqual(path.read_text().count("step 1"), 1)

    def test_what_libraries_print_themselves_goes_to_their_log(self):
        with self.assertLogs("library", "WARNING") as logs, console.library_output():
            os.write(2, b"[Gloo] Rank 0\n")
        self.assertEqual([record.getMessage() for record in logs.records], ["[Gloo] Rank 0"])

    @parameterized.parameters(("Event loop is closed", False), ("no such thing", True))
    def test_what_is_left_of_a_failed_save_is_no_news(self, text, is_news):
        print_it = mock.Mock()
        console._print_unraisable(print_it, mock.Mock(exc_value=RuntimeError(text)))
        self.assertEqual(print_it.called, is_news)


if __name__ == "__main__":
    absltest.main()
