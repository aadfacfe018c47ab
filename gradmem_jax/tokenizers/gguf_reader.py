"""The header of a GGUF file, read strictly: nothing is made that the file has no room for."""

import math
import pathlib
import re
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import gguf
import numpy as np

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage.reading import MEBIBYTE, require_file

_VERSIONS = (2, 3)
_LARGEST_HEADER = 64 * MEBIBYTE  # a vocabulary of 256,000 pieces takes 10
_MOST_AXES = 4
_PART, _MOST_PARTS = re.compile(r"-(\d{5})-of-\d{5}\.gguf$"), 1000
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}  # by GGUF's type
_KINDS = {int(kind): kind for kind in gguf.GGML_QUANT_SIZES}
_PLAIN = {
    gguf.GGMLQuantizationType.F64: "<f8",
    gguf.GGMLQuantizationType.F32: "<f4",
    gguf.GGMLQuantizationType.F16: "<f2",
}


class GGUFTensor(NamedTuple):
    """Where a tensor of a GGUF file stands.

    Attributes:
        shape: its shape, the axis that runs fastest last.
        kind: how its numbers are stored.
        start: its first byte in the file.
        end: the byte behind its last.
        file: the file that it is in.
    """

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    end: int
    file: pathlib.Path


class GGUFFile(NamedTuple):
    """What the header of a GGUF file says.

    Attributes:
        path: the file.
        fields: its metadata by name.
        tensors: its tensors by name.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor, its numbers as floating-point ones.

        Raises:
            ValueError: they are stored in a way that cannot be read.
        """
        shape, kind, start, end, path = self.tensors[name]
        content = np.memmap(path, np.uint8, "r", start, (end - start,))
        if kind in _PLAIN:
            return content.view(_PLAIN[kind]).reshape(shape)
        try:
            blocks = content.reshape(gguf.quant_shape_to_byte_shape(shape, kind))
            return gguf.dequantize(blocks, kind)
        except NotImplementedError as error:
            raise ValueError(
                f"the tensor {shown(name)} is stored as {kind.name}, which cannot be read: {error}."
            ) from error


def open_gguf_file(path: pathlib.Path) -> GGUFFile:
    """Reads the header of a GGUF file, and those of its other parts if gguf-split made several.

    Raises:
        ValueError: it is none, a part is missing, or one is damaged.
    """
    file = _open_part(path)
    count = file.fields.get("split.count", 1)
    if type(count) is not int or count <= 1:
        return file
    match = _PART.search(path.name)
    require(
        match is not None and count <= _MOST_PARTS,
        f"{path} is one of {count} parts; name it as gguf-split did, such as "
        f"{path.stem}-00001-of-{count:05d}.gguf, or join the parts with gguf-split --merge.",
    )
    stem = _PART.sub("", path.name)
    places = [path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [place.name for place in places if not place.is_file()]
    require(not missing, f"{path} is one of {count} parts, and {shown(missing)} are not beside it.")
    parts = [_open_part(place) for place in places]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    require(
        len(tensors) == sum(len(part.tensors) for part in parts)
        and all(
            (part.fields.get("split.no"), part.fields.get("split.count")) == (i, count)
            and part.fields.get("split.tensors.count", len(tensors)) == len(tensors)
            for i, part in enumerate(parts)
        ),
        f"{path} and the parts beside it are not those of one model; get them again.",
    )
    return GGUFFile(path, parts[0].fields, tensors)


def first_parts(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the files of models, of one in several parts the first."""
    found = ((path, _PART.search(path.name)) for path in sorted(paths))
    return [path for path, match in found if match is None or int(match[1]) == 1]


def _open_part(path: pathlib.Path) -> GGUFFile:
    size = require_file(path, "GGUF file")
    try:
        with open(path, "rb") as file:
            return _read_header(path, _Header(file.read(min(size, _LARGEST_HEADER))), size)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ValueError(f"{path} is no GGUF file, damaged or cut short: {error}.") from error


class _Header:
    """Reads values one after the other; what is not there raises ValueError."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.place = 0

    def number(self, kind: str) -> Any:
        """One number of a type of `struct`."""
        size = struct.calcsize(f"<{kind}")
        require(self.place + size <= len(self.content), "its header has no end")
        (value,) = struct.unpack_from(f"<{kind}", self.content, self.place)
        self.place += size
        return value

    def count(self, what: str, least: int) -> int:
        """A number of things of which each takes so many bytes or more."""
        count: int = self.number("Q")
        left = (len(self.content) - self.place) // least
        require(count <= left, f"it says that {count} {what} follow, but has room for {left}")
        return count

    def text(self) -> str:
        """A text in UTF-8 behind its length."""
        start = self.place + 8
        self.place = start + int.from_bytes(self.content[self.place : start], "little")
        if self.place > len(self.content):
            raise ValueError("a text has no end")
        return self.content[start : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        """A value of one of GGUF's types."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(self.number("I"))
        require(kind in _NUMBERS, f"values of type {kind} are not known")
        return self.number(_NUMBERS[kind])

    def _array(self, kind: int) -> list[Any]:
        if kind == _STRING:
            return [self.text() for _ in range(self.count("texts", 8))]
        require(kind in _NUMBERS, f"arrays of values of type {kind} are not known")
        dtype = np.dtype(f"<{_NUMBERS[kind]}")
        count = self.count("values", dtype.itemsize)
        values = np.frombuffer(self.content, dtype, count, self.place)
        self.place += values.nbytes
        return values.tolist()


def _read_header(path: pathlib.Path, header: _Header, size: int) -> GGUFFile:
    require(header.number("4s") == b"GGUF", "it does not begin with GGUF")
    version = header.number("I")
    require(version in _VERSIONS, f"its version is {version}, known are {_VERSIONS}")
    num_tensors = header.count("tensors", 24)
    num_fields = header.count("values", 13)
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        name, kind = header.text(), header.number("I")
        require(name not in fields, f"it has {shown(name)} twice")
        fields[name] = header.value(kind)
    described: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
        name, num_axes = header.text(), header.number("I")
        require(name not in described, f"it has the tensor {shown(name)} twice")
        require(num_axes <= _MOST_AXES, f"the tensor {shown(name)} has {num_axes} axes")
        shape = tuple(header.number("Q") for _ in range(num_axes))[::-1]
        described[name] = (shape, header.number("I"), header.number("Q"))
    alignment = fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    require(
        type(alignment) is int and alignment > 0 and alignment & (alignment - 1) == 0,
        f"general.alignment={shown(alignment)} is no power of two",
    )
    data = -(-header.place // alignment) * alignment
    tensors = {name: _place(path, name, *parts, data) for name, parts in described.items()}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        require(tensor.start >= end, f"the tensor {shown(name)} overlaps another one")
        end = max(end, tensor.end)
        require(end <= size, f"it has {size} bytes, but the tensor {shown(name)} ends at {end}")
    return GGUFFile(path, fields, tensors)


def _place(
    path: pathlib.Path, name: str, shape: tuple[int, ...], kind: int, offset: int, data: int
) -> GGUFTensor:
    require(kind in _KINDS, f"the tensor {shown(name)} is of type {kind}, which is not known")
    block, num_bytes = gguf.GGML_QUANT_SIZES[_KINDS[kind]]
    count = math.prod(shape)
    require(
        count > 0 and shape[-1:] != () and shape[-1] % block == 0,
        f"the tensor {shown(name)} has the shape {shape}, which does not fit {_KINDS[kind].name}",
    )
    start = data + offset
    return GGUFTensor(shape, _KINDS[kind], start, start + count // block * num_bytes, path)
