"""How a run is stopped from outside: by signals, or by a disk that takes no more."""

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_STOP = 1.0  # seconds; a terminal or a sweep may deliver one stop twice


class Stopped(BaseException):
    """A signal asked the run to stop."""


class Stopping:
    """Whether a signal has come; made by `catch_signals`."""

    def __init__(self) -> None:
        self._name = ""
        self._time = 0.0
        self._interruptible = False

    def check(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self._name:
            raise Stopped(self._name)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """In this block, which must be safe to leave anywhere, a signal raises `Stopped`."""
        self.check()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False
        self.check()

    def handle(self, number: int, _: Any) -> None:
        """Handles a signal: the first one asks the run to stop, another one ends it."""
        name = signal.Signals(number).name
        if not self._name:
            self._name, self._time = name, time.monotonic()
            # Not through the log, whose stream the signal may have interrupted.
            os.write(2, f"{name}: saving a checkpoint, then stopping; again to end now\n".encode())
        elif time.monotonic() - self._time > _SAME_STOP:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._interruptible:
            self._interruptible = False
            raise Stopped(self._name)


@contextlib.contextmanager
def catch_signals() -> Iterator[Stopping]:
    """Lets SIGTERM and SIGINT stop a run between two steps; only in the main thread."""
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    earlier = {number: signal.signal(number, stopping.handle) for number in SIGNALS}
    try:
        yield stopping
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
