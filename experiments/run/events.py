"""Event files of TensorBoard, read with nothing taken on trust."""

import pathlib
import struct
from collections.abc import Iterator

import numpy as np
from tensorboardX.crc32c import CRC_TABLE
from tensorboardX.proto.event_pb2 import Event

from gradmem_jax.checks import require
from gradmem_jax.storage.reading import read_bytes
from gradmem_jax.storage.writing import write_file

_LARGEST = 2**30  # bytes of a file; a million steps take some ten million
_TABLE = np.array(CRC_TABLE, np.uint32)


def read_events(path: pathlib.Path) -> Iterator[Event]:
    """Yields the events of a file; the last one may still be being written.

    Raises:
        ValueError: it is no such file, or damaged.
    """
    content = read_bytes(path, "file of events", _LARGEST)
    heads = _heads(content)
    whole = heads[:-1] if heads and heads[-1][1] + 16 + heads[-1][0] > len(content) else heads
    _check_sums(path, content, [(8, place) for _, place in heads])
    _check_sums(path, content, [(length, place + 12) for length, place in whole])
    for length, place in whole:
        try:
            yield Event.FromString(content[place + 12 : place + 12 + length])
        except Exception:  # whatever protobuf makes of other bytes
            _require_whole(path, place, False)


def drop_later(path: pathlib.Path, step: int, again: str | None = None) -> None:
    """Takes events of scalars after a step out of a file: a run that goes on will tell them again.

    Args:
        path: the file.
        step: the last step whose events stay.
        again: a group of scalars that is told again of that step too, such as "evaluation".

    Raises:
        ValueError: it is no file of events, or damaged.
    """
    events = list(read_events(path))

    def stays(event: Event) -> bool:
        groups = {value.tag.partition("/")[0] for value in event.summary.value}
        return event.step < step or (event.step == step and again not in groups)

    kept = [event for event in events if stays(event)]
    if len(kept) < len(events):
        records = b"".join(_record(event.SerializeToString()) for event in kept)
        write_file(path, lambda place: place.write_bytes(records))


def _record(content: bytes) -> bytes:
    """An event as it stands in a file, see `_heads`."""
    length = struct.pack("<Q", len(content))
    whole = length + bytes(4) + content
    sums = _checksums(np.frombuffer(whole, np.uint8), [(8, 0), (len(content), 12)])
    first, second = (int(x).to_bytes(4, "little") for x in sums)
    return length + first + content + second


def _heads(content: bytes) -> list[tuple[int, int]]:
    """Length and place of each record: its length, a checksum of that, content, its checksum."""
    place, heads = 0, []
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        heads.append((length, place))
        place += 16 + length
    return heads


def _check_sums(path: pathlib.Path, content: bytes, parts: list[tuple[int, int]]) -> None:
    """Compares checksums of parts, given as length and place, with the four bytes behind each."""
    found = _checksums(np.frombuffer(content, np.uint8), parts)
    for (length, place), checksum in zip(parts, found, strict=True):
        (wanted,) = struct.unpack_from("<I", content, place + length)
        _require_whole(path, place, checksum == wanted)


def _require_whole(path: pathlib.Path, place: int, is_whole: bool) -> None:
    require(
        is_whole,
        f"{path} is no file of events, or damaged from byte {place} on; move it away, or copy the "
        "run again.",
    )


def _checksums(data: np.ndarray, parts: list[tuple[int, int]]) -> np.ndarray:
    """The masked CRC-32C of parts of some bytes, a byte of all parts at a time."""
    length, first = np.array(parts, np.int64).reshape(-1, 2).T
    order = np.argsort(-length, kind="stable")  # the longest part first
    length, first = length[order], first[order]
    crc = np.full(len(parts), 0xFFFFFFFF, np.uint32)
    for i in range(length.max(initial=0)):
        n = np.searchsorted(-length, -i)  # so many parts have a byte i
        crc[:n] = _TABLE[(crc[:n] ^ data[first[:n] + i]) & 0xFF] ^ (crc[:n] >> 8)
    crc ^= np.uint32(0xFFFFFFFF)
    masked = np.empty_like(crc)
    masked[order] = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    return masked
