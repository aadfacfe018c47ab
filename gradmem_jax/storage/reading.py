"""Files that may come from anybody: only regular ones are opened, and none larger than it may be.

A FIFO or a device in place of a file would hang the reader or never end.
"""

import json
import os
import pathlib
import stat
from collections import Counter
from typing import Any

from gradmem_jax.checks import require, require_local
from gradmem_jax.foreign_text import shown

MEBIBYTE = 2**20
LARGEST_JSON = 64 * MEBIBYTE
_POINTER, _LARGEST_POINTER = b"version https://git-lfs.github.com/spec/", 1024


def largest_unpacked(size: int) -> int:
    """How many bytes a packed file of some size may hold: text seldom shrinks to a hundredth."""
    return min(max(64 * MEBIBYTE, 100 * size), 4096 * MEBIBYTE)


def require_file(path: str | pathlib.Path, what: str) -> int:
    """Returns the size of a file in bytes.

    Args:
        path: the file, or a link to one.
        what: what it should be, for messages.

    Raises:
        ValueError: there is none, it cannot be looked at, or it is a folder, a device or a FIFO.
    """
    require_local("path", path)
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} is not a file ({reason}); where is the {what}?") from error
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, a FIFO or a socket"
    require(stat.S_ISREG(found.st_mode), f"{path} is not a file but {kind}; where is the {what}?")
    require(
        found.st_size > _LARGEST_POINTER or not _is_pointer(path),
        f"{path} is no {what} but a pointer of Git LFS to it: fetch the file itself, with `git lfs "
        "pull` in its folder, or from where it was published.",
    )
    return found.st_size


def _is_pointer(path: str | pathlib.Path) -> bool:
    """Whether a file stands for another one that Git LFS keeps."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:  # whoever reads it hears of that
        return False


def read_bytes(path: str | pathlib.Path, what: str, largest: int) -> bytes:
    """Reads a file of at most `largest` bytes.

    Raises:
        ValueError: see `require_file`; or it is larger, or cannot be read.
    """
    size = require_file(path, what)
    require(
        size <= largest,
        f"{path} has {size} bytes; a {what} has at most {largest}, so this is none.",
    )
    try:
        with open(path, "rb") as file:
            return file.read(largest)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error


def read_text(path: str | pathlib.Path, what: str, largest: int) -> str:
    """Reads a text in UTF-8 of at most `largest` bytes.

    Raises:
        ValueError: see `read_bytes`; or it is not UTF-8.
    """
    try:
        return text_of(read_bytes(path, what, largest))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); convert it first.") from error


def text_of(content: bytes) -> str:
    """Returns the text of bytes in UTF-8, without the byte-order mark that Windows puts first.

    Raises:
        UnicodeDecodeError: they are not UTF-8.
    """
    return content.decode("utf-8-sig")


def read_json(path: str | pathlib.Path, what: str, largest: int = LARGEST_JSON) -> Any:
    """Reads a JSON file of at most `largest` bytes.

    Raises:
        ValueError: see `read_text`; or it is not JSON, or nested too deeply.
    """
    return parse_json(read_text(path, what, largest), f"{path}, a {what},")


def parse_json(text: str, where: str) -> Any:
    """Parses JSON that stands at `where`.

    Raises:
        ValueError: it is not JSON, nested too deeply, or has a key twice, of which readers may take
            the first or the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: it is no JSON ({error}).") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {shown(name)} twice")
    return found
