"""Array_record files from anybody: what they unpack to is bounded before anything is unpacked.

They are files of Riegeli, https://github.com/google/riegeli/blob/master/doc: blocks of 64 KiB,
each with a header, and in what is between the headers one chunk behind the other.
"""

import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import one_line
from gradmem_jax.storage.reading import largest_unpacked, require_file

_BLOCK, _BLOCK_HEADER = 2**16, 24
_CHUNK = struct.Struct("<8xQ8x8sQ")  # size, kind and number of records, size when unpacked
_RECORDS = ord("r")


def read_array_records(path: pathlib.Path) -> list[bytes]:
    """Reads the records of a file in their order.

    Raises:
        ValueError: it is missing, damaged, no such file, or would unpack to far more than it has.
    """
    from array_record.python import array_record_module  # not where only tasks are named

    size = require_file(path, "array_record file")
    limit = largest_unpacked(size)
    try:
        with open(path, "rb") as file:
            unpacked = sum(_unpacked_sizes(file, size))
    except (OSError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged: {one_line(str(error), 300)}") from error
    require(
        unpacked <= limit,
        f"{path} has {size} bytes and would unpack to {unpacked}; {limit} are allowed for its "
        "size. Write it again with less in a file, or uncompressed.",
    )
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        records = list(reader.read_all()) if count else []
        reader.close()
    except Exception as error:  # of C++: of several kinds
        raise ValueError(f"{path} is damaged: {one_line(str(error), 300)}") from error
    return records


def _unpacked_sizes(file: BinaryIO, size: int) -> Iterator[int]:
    """How much each chunk of records unpacks to, by its header."""
    place, end = 0, _places(size)
    while place < end:
        packed, kind, unpacked = _CHUNK.unpack(_take(file, place, _CHUNK.size))
        if kind[0] == _RECORDS:
            yield unpacked
        elif unpacked:
            raise ValueError("it has a chunk of another kind than records.")
        place += _CHUNK.size + max(packed, int.from_bytes(kind[1:], "little"))
    if place != end:
        raise ValueError("its last chunk is cut short.")


def _places(size: int) -> int:
    """Bytes of a file of some size that belong to chunks."""
    blocks, rest = divmod(size, _BLOCK)
    return blocks * (_BLOCK - _BLOCK_HEADER) + max(rest - _BLOCK_HEADER, 0)


def _take(file: BinaryIO, place: int, count: int) -> bytes:
    """Bytes from a place on, counted without the headers of blocks."""
    taken = b""
    while len(taken) < count:
        block, within = divmod(place + len(taken), _BLOCK - _BLOCK_HEADER)
        file.seek(block * _BLOCK + _BLOCK_HEADER + within)
        part = file.read(min(count - len(taken), _BLOCK - _BLOCK_HEADER - within))
        if not part:
            raise ValueError("it is cut short.")
        taken += part
    return taken
