"""What damaged and hostile files are made of: places that are no files, changed bytes and JSON."""

import os
import pathlib
import random
from collections.abc import Iterator

DEEP = "[" * 100_000


def no_files(folder: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """Places with this name, each in a folder of its own, that are no regular files."""
    for kind in ("fifo", "zero", "random", "folder", "missing", "loop", "fifo_link"):
        path = folder / kind / name
        path.parent.mkdir(parents=True)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "fifo_link":
            os.mkfifo(path.with_name("pipe"))
            path.symlink_to(path.with_name("pipe"))
        elif kind != "missing":
            path.symlink_to("/dev/zero" if kind == "zero" else "/dev/urandom")
        yield path


def damaged(content: bytes, flips: int = 12, cuts: int = 4) -> Iterator[tuple[str, bytes]]:
    """Copies of a file's bytes with a bit changed, or cut short; the same ones for ever."""
    rng = random.Random(len(content))
    for _ in range(flips):
        changed = bytearray(content)
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        changed[place] ^= 1 << bit
        yield f"bit {bit} of byte {place}", bytes(changed)
    for _ in range(cuts):
        length = rng.randrange(len(content))
        yield f"cut to {length}", content[:length]
    yield "empty", b""
