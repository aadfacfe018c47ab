"""Folders that one process at a time may work on, on any of the machines that share them."""

import contextlib
import fcntl
import os
import pathlib
import re
import socket
from collections.abc import Iterator
from typing import TextIO

from gradmem_jax.foreign_text import one_line
from gradmem_jax.storage.reading import read_text
from gradmem_jax.storage.writing import open_to_append


@contextlib.contextmanager
def hold(path: pathlib.Path) -> Iterator[TextIO | None]:
    """Holds a lock file; yields None if another process holds it.

    The system lets go of it when the last process that has the file open ends, however it ends.

    Raises:
        ValueError: it is a link, or no regular file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield file


def is_held(file: TextIO, path: pathlib.Path) -> bool:
    """Whether a file from `hold` is still the one at its path: its folder is the same one."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def is_orphaned(path: pathlib.Path) -> bool:
    """Whether a lock file is held by a process whose parent took the lock and is no more.

    It is known of this machine only.
    """
    match = re.fullmatch(r"process (\d+) on (.*)", holder(path))
    with hold(path) as held:
        if held is not None or match is None or match[2] != socket.gethostname():
            return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is somebody else's
        return False
    return False


def holder(path: pathlib.Path) -> str:
    """Says who holds a lock file, such as "process 12 on host"."""
    try:
        return one_line(read_text(path, "lock", largest=1000).strip()) or "another process"
    except ValueError:
        return "another process"
