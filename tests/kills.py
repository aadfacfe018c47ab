"""A writer that is killed, without a process of its own."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open")
_WATCHES: list[Callable[[str, tuple[Any, ...]], None]] = []


class Killed(BaseException):
    """In place of SIGKILL; from here on nothing is done in the folder, no cleaning either."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in _WATCHES:
        watch(event, arguments)


sys.addaudithook(_hook)  # there is no way to take one out


def killed(folder: pathlib.Path, place: int, call: Callable[[], object]) -> bool:
    """Ends a call where it touches a folder for the n-th time.

    Args:
        folder: the folder.
        place: n, from 1 on.
        call: what writes there.

    Returns:
        Whether the call came so far; otherwise it has ended by itself.
    """
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _EVENTS and str(folder) in str(arguments[0]):
            count += 1
            if count >= place:
                raise Killed

    _WATCHES.append(watch)
    try:
        with mock.patch("os.fsync"):  # nobody turns the machine off
            call()
    except Killed:
        return True
    finally:
        _WATCHES.remove(watch)
    return False
