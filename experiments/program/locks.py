"""Folders that one process at a time may work on, on any of the machines that share them."""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def hold(path: pathlib.Path) -> Iterator[TextIO | None]:
    """Holds a lock file; yields None if another process holds it.

    The system lets go of it when the last process that has the file open ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield file


def holder(path: pathlib.Path) -> str:
    """Says who holds a lock file, such as "process 12 on host"."""
    return path.read_text().strip() or "another process"
