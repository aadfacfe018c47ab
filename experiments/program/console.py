"""What programs print: lines of one format, on a standard output that may be closed.

Texts in them may be foreign: names in a file that somebody sent. Whatever goes through here is
printable, so none of it can steer the terminal.
"""

import functools
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from absl import logging as absl_logging

from gradmem_jax.foreign_text import printable

log = logging.getLogger("experiments")
_ORBAX = os.path.join("orbax", "checkpoint", "")


class _Printable(logging.Formatter):
    """Another formatter's lines, without what a terminal would obey."""

    def __init__(self, formatter: logging.Formatter) -> None:
        """Takes the other one."""
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        return printable(self._formatter.format(record))


class _StandardOutput(logging.StreamHandler):
    """Standard output, which may be closed or full: a program goes on without its lines.

    Attributes:
        lost: why a line was not taken, if its reader has not just gone.
    """

    lost: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Says that a record could not be written; of a disk that is full, `check` does."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not isinstance(error, BrokenPipeError):
            self.lost = error


def _is_news(record: logging.LogRecord) -> bool:
    """Whether nobody else says it: what Orbax fails at it logs on pages, and raises too."""
    return not (_ORBAX in record.pathname or record.name == "asyncio")


def _print_unraisable(print_it: Callable[[Any], object], unraisable: Any) -> None:
    """Prints an error that has nowhere to go, but for those that a failed save of Orbax leaves."""
    if str(unraisable.exc_value) != "Event loop is closed":
        print_it(unraisable)


def set_up_logging() -> None:
    """Sends our lines to standard output; of libraries only warnings, unless --verbosity is set."""
    _say_all(sys.stdout)
    handler = _StandardOutput(sys.stdout)
    handler.setFormatter(_Printable(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
        absl_logging.get_absl_handler().addFilter(_is_news)
        sys.unraisablehook = functools.partial(_print_unraisable, sys.unraisablehook)
    absl_logging.get_absl_handler().setFormatter(_Printable(absl_logging.PythonFormatter()))


def _say_all(stream: Any) -> None:
    """Has a stream escape what its encoding lacks, where it would raise an error."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Prints a text, perhaps of several lines, on standard output."""
    try:
        print(printable(text), flush=True)
    except OSError as error:
        raise _of_output(error) from error


def check() -> None:
    """Raises OSError if a line of the log could not be written on standard output."""
    for handler in log.handlers:
        if isinstance(handler, _StandardOutput) and handler.lost is not None:
            raise _of_output(handler.lost)


def _of_output(error: OSError) -> OSError:
    return OSError(error.errno, error.strerror, "standard output")
