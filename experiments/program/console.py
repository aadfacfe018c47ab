"""What programs print: lines of one format, on a standard output that may be closed.

What libraries warn of goes to the log file of a run, if the program keeps one; --verbosity=0 shows
it instead.

Texts in them may be foreign: names in a file that somebody sent. Whatever goes through here is
printable, so none of it can steer the terminal.
"""

import collections
import contextlib
import ctypes
import functools
import io
import logging
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from absl import logging as absl_logging

import gradmem_jax
from gradmem_jax.foreign_text import one_line, printable
from gradmem_jax.storage.writing import open_to_append

log = logging.getLogger("experiments")
_ORBAX = os.path.join("orbax", "checkpoint", "")
_OURS = str(pathlib.Path(gradmem_jax.__file__).parent)
_FORMAT = "%(asctime)s %(message)s"
_MOST_KEPT = 1000  # lines of libraries, until there is a file for them


class _Printable(logging.Formatter):
    """Another formatter's lines, without what a terminal would obey."""

    def __init__(self, formatter: logging.Formatter) -> None:
        """Takes the other one."""
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        return printable(self._formatter.format(record))


class _Lines(logging.StreamHandler):
    """A stream that may be closed, or its disk full: a program goes on without its lines.

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


class _Libraries(logging.Handler):
    """Takes what libraries log: warnings for a file, errors for people too, in a line."""

    def __init__(self) -> None:
        """Keeps lines until there is a file."""
        super().__init__(logging.WARNING)
        self.file: logging.Handler | None = None
        self._kept: collections.deque[logging.LogRecord] = collections.deque(maxlen=_MOST_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Passes a record on."""
        if record.pathname.startswith(_OURS):
            log.handle(record)
            return
        text = f"{record.name}: {record.getMessage()}"
        line = logging.makeLogRecord(vars(record) | {"msg": text, "args": ()})
        self._kept.append(line)
        self.pass_on()
        if record.levelno >= logging.ERROR and _is_news(record):
            short = {"msg": one_line(text), "exc_info": None}
            for handler in log.handlers:
                if handler is not self.file:  # it has the whole text
                    handler.handle(logging.makeLogRecord(vars(line) | short))

    def pass_on(self) -> None:
        """Writes what is kept to the file, if there is one."""
        while self.file is not None and self._kept:
            self.file.handle(self._kept.popleft())


_libraries = _Libraries()


@contextlib.contextmanager
def log_file(path: pathlib.Path) -> Iterator[None]:
    """Has a file take our lines as well, dated, and those of libraries.

    If it is our standard output already, as below `experiments.sweep`, it gets them once. An error
    that ends the block is a line of the file too: whoever catches it says it elsewhere.

    Raises:
        ValueError: it is a link, or no regular file.
    """
    file = open_to_append(path)
    handler = _Lines(file)
    handler.setFormatter(_Printable(logging.Formatter(_FORMAT)))
    _libraries.file = handler
    _libraries.pass_on()
    is_apart = not _is_standard_output(file.fileno())
    if is_apart:
        log.addHandler(handler)
    try:
        yield
    except BaseException as error:
        if is_apart:
            handler.handle(_ended_by(error))
        raise
    finally:
        log.removeHandler(handler)
        _libraries.file = None
        with contextlib.suppress(OSError):  # its disk may be full
            file.close()


def _ended_by(error: BaseException) -> logging.LogRecord:
    """A line that says why a run ended."""
    text = one_line(f"ended by {type(error).__name__}: {error}")
    fields = {"name": log.name, "levelno": logging.ERROR, "levelname": "ERROR", "msg": text}
    return logging.makeLogRecord(fields)


def _is_standard_output(descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # it has no file, or is closed
        return False


@contextlib.contextmanager
def library_output() -> Iterator[None]:
    """Has lines that libraries print themselves in this block go where those they log go."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as file:
        saved = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in saved:
                os.dup2(file.fileno(), number)
            yield
        finally:
            ctypes.CDLL(None).fflush(None)  # what C and C++ have not written yet
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                logging.getLogger("library").warning("%s", line)


def _print_unraisable(print_it: Callable[[Any], object], unraisable: Any) -> None:
    """Prints an error that has nowhere to go, but for those that a failed save of Orbax leaves."""
    if str(unraisable.exc_value) != "Event loop is closed":
        print_it(unraisable)


def set_up_logging() -> None:
    """Sends our lines to standard output; of libraries only errors, unless --verbosity is set."""
    _say_all(sys.stdout)
    handler = _Lines(sys.stdout)
    handler.setFormatter(_Printable(logging.Formatter(_FORMAT, "%H:%M:%S")))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.root.removeHandler(absl_logging.get_absl_handler())
        logging.root.addHandler(_libraries)
        logging.captureWarnings(True)
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


def note(text: str) -> None:
    """Tells somebody at a terminal what they wait for; standard output is for answers."""
    if sys.stderr.isatty():
        print(f"{time.strftime('%H:%M:%S')} {printable(text)}", file=sys.stderr, flush=True)


def check() -> None:
    """Raises OSError if a line of the log could not be written on standard output."""
    for handler in log.handlers:
        if isinstance(handler, _Lines) and handler.lost is not None:
            raise _of_output(handler.lost)


def _of_output(error: OSError) -> OSError:
    return OSError(error.errno, error.strerror, "standard output")
