"""Files that are written whole or not at all, one or several together, also when a disk is full.

They are written in a folder `.saving-*` beside their places, brought to the disk, and renamed. A
rename takes the place of a link, so nothing is written to where a link leads.
"""

import contextlib
import fcntl
import os
import pathlib
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from gradmem_jax.checks import require, require_local
from gradmem_jax.foreign_text import shown

_PREFIX = ".saving-"
Writer = Callable[[pathlib.Path], object]


def write_files(
    folder: str | pathlib.Path, writers: Mapping[str, Writer], *, remove: Sequence[str] = ()
) -> None:
    """Writes files together: none takes its place before all are on the disk.

    Args:
        folder: where to; made if missing.
        writers: by name of the file, a function that writes it to the path it is given. Of several
            files the last one says that the others belong together: an older one is removed before
            they take their places, so that old and new ones are never taken for one model.
        remove: files of an older version that are to be gone.

    Raises:
        ValueError: a folder or a device has one of the names, or a link leads out of the folder.
        OSError: the disk takes no more; what was there before is untouched.
    """
    require_local("path", folder)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder)
    *first, last = writers
    for name in (*writers, *remove):
        _require_inside(folder, name)
    for name in writers:
        _require_replaceable(folder / name)
    with _temporary_folder(folder) as temporary:
        for name, write in writers.items():
            place = temporary / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with _errors_about(folder / name):
                write(place)
                _flush(place)
        if first or remove:
            (folder / last).unlink(missing_ok=True)
            _flush(folder)
        for name in remove:
            (folder / name).unlink(missing_ok=True)
        for name in (*first, last):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).replace(target)
            _flush(target.parent)


@contextlib.contextmanager
def _errors_about(path: pathlib.Path) -> Iterator[None]:
    """Has errors of the system in this block name a file by its path, not by a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_file(path: str | pathlib.Path, write: Writer) -> None:
    """Writes one file: readers see the old one or the new one, whole."""
    require_local("path", path)
    path = pathlib.Path(path)
    write_files(path.parent, {path.name: write})


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes one text file: readers see the old one or the new one, whole."""
    write_file(path, lambda place: place.write_text(text, encoding="utf-8"))


def require_no_link(path: pathlib.Path) -> None:
    """Refuses a link in the place of what is to be written, emptied or deleted.

    It may come with a folder of somebody else, and lead out of that.

    Raises:
        ValueError: it is one.
    """
    require(
        not path.is_symlink(),
        f"{path} is a link: what it leads to would be changed. Remove it, or put what it leads to "
        "in its place.",
    )


def open_to_append(path: pathlib.Path) -> TextIO:
    """Opens a text to read it and add to it; makes it if it is missing.

    Raises:
        ValueError: it is a link, or no regular file.
    """
    require_no_link(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is a device or a FIFO; remove it.")
    return os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")


def clean(folder: pathlib.Path) -> None:
    """Removes what processes left in a folder that were killed while they wrote files there."""
    for left in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _held(left):
            shutil.rmtree(left)


def _require_inside(folder: pathlib.Path, name: str) -> None:
    """Refuses a name with a folder in it that is a link: it may lead anywhere."""
    between = (part for part in (folder / name).parents if folder in part.parents)
    links = [str(part) for part in between if part.is_symlink()]
    require(not links, f"{folder / name}: {shown(links)} is a link; remove it first.")


def _require_replaceable(path: pathlib.Path) -> None:
    """Refuses to put a file in the place of a folder or a device."""
    replaceable = path.is_symlink() or path.is_file() or not path.exists()
    kind = "folder" if path.is_dir() else "device or FIFO"
    require(replaceable, f"{path} is a {kind}; a file cannot take its place. Choose another name.")


@contextlib.contextmanager
def _temporary_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder that `clean` leaves alone as long as this block runs."""
    while True:
        folder = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_held(folder))
            except BlockingIOError:  # `clean` of another process has it, and is about to delete it
                continue
            except OSError:
                pass  # some network file systems have no such locks
            if not folder.is_dir():  # `clean` has deleted it before the lock
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[None]:
    """Holds a lock on a folder; raises OSError if another process does, or none can be held."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _flush(path: pathlib.Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
