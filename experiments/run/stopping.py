"""How a run is stopped from outside: by signals, or by a disk that fails."""

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SAME_STOP = 1.0  # seconds; a terminal or a sweep may deliver one stop twice


class Stopped(BaseException):
    """A signal asked the run to stop."""


class Stopping:
    """Whether a signal has come; made by `catch_signals`.

    Attributes:
        to_save: whether steps were trained since the last checkpoint.
    """

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        """With `agree`, the processes stop together: see `catch_signals`."""
        self.to_save = False
        self._agree = agree
        self._name = ""
        self._time = 0.0
        self._interruptible = False

    def check(self) -> None:
        """Raises `Stopped` if a signal has come; of several processes all must call it."""
        stop = int(bool(self._name))
        if self._agree is not None:
            stop = self._agree(stop)
        if stop:
            raise Stopped(self._name or "a signal to another process")

    def check_alone(self) -> None:
        """Raises `Stopped` as `check` does, but of several processes none."""
        if self._agree is None:
            self.check()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """In this block, which must be safe to leave anywhere, a signal raises `Stopped`.

        Of several processes none can leave it alone; they look at the end.
        """
        self.check()
        self._interruptible = self._agree is None
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
            saving, idle = "saving a checkpoint, then stopping", "stopping; nothing to save yet"
            # Not through the log, whose stream the signal may have interrupted.
            line = f"{name}: {saving if self.to_save else idle}; again to end now\n"
            with contextlib.suppress(OSError):  # the terminal may be closed
                os.write(2, line.encode())
        elif time.monotonic() - self._time > _SAME_STOP:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._interruptible:
            self._interruptible = False
            raise Stopped(self._name)


@contextlib.contextmanager
def catch_signals(agree: Callable[[int], int] | None = None) -> Iterator[Stopping]:
    """Lets SIGTERM, SIGINT and SIGHUP stop a run between two steps; only in the main thread.

    SIGHUP comes when a terminal is closed; under nohup it does not count.

    Args:
        agree: returns the largest of the values that several processes call it with, so that a
            signal to one of them stops all at the same step.
    """
    stopping = Stopping(agree)
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    earlier = handle_signals(stopping.handle)
    try:
        yield stopping
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def handle_signals(handle: Callable[[int, Any], None]) -> dict[int, Any]:
    """Has the signals that stop a program handled; returns by signal what handled them before."""
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
    return {number: signal.signal(number, handle) for number in heard}
