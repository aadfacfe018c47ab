"""Ends a child process as `kill -9` does, inside the save of a checkpoint."""

import os
import signal
import sys
from typing import Any

TEMPORARY = ".orbax-checkpoint-tmp"
NUM_EVENTS = 31  # of a save, in Python: folders, files, and renames at the end


def kill_in_save(directory: str, step: int, depth: int) -> None:
    """Kills this process at the `depth`th file or folder of the save of a step, from 1.

    A depth above those of a save stands for the deletion of an older checkpoint that comes after
    it: its files are gone, its folder is not.
    """
    unfinished = os.path.join(directory, f"{step}{TEMPORARY}")
    committed = os.path.join(directory, str(step))
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event != "open" and not event.startswith("os."):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike):
            return
        path = os.fspath(path)
        in_save = path.startswith(unfinished)
        count += in_save
        deletes = event == "os.rmdir" and os.path.dirname(path) == directory
        late = depth > NUM_EVENTS and deletes and os.path.isdir(committed)
        if late or (in_save and count == depth):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
