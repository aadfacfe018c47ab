"""What a memory file says beside its arrays: texts that are checked part by part when they come.

A right checksum proves nothing: whoever changes a file can compute it again.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradmem_jax.checks import check_fields, require, require_instance, require_integer
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.storage.fingerprint import Fingerprint
from gradmem_jax.storage.hashing import hash_bytes
from gradmem_jax.storage.reading import parse_json

FORMAT, VERSION = "gradmem_jax memory", "1"


@dataclasses.dataclass(frozen=True)
class StoredContext:
    """What a file says of one context.

    Attributes:
        name: what it is called, such as its path.
        num_tokens: its length without padding; None if the writer did not say.
        write_losses: WRITE loss before each step in nats a token, a row for each segment. A file
            keeps them as float32.
        final_loss: loss of all its tokens given the stored memory.

    Examples:
        >>> from gradmem_jax.storage.memory_header import StoredContext
        >>> contexts = [StoredContext("monday.txt", num_tokens=5), StoredContext("tuesday.txt")]
        >>> gradmem_jax.save_memory("memory.safetensors", memory, model, params, contexts=contexts)
    """

    name: str
    num_tokens: int | None = None
    write_losses: tuple[tuple[float, ...], ...] = ()
    final_loss: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_tokens is not None:
            require_integer("num_tokens", self.num_tokens, 0)


class Header(NamedTuple):
    """All that a file says beside its arrays.

    Attributes:
        fingerprint: of the model that wrote it.
        config: the model's configuration.
        contexts: one for each stored memory.
        notes: what the writer wanted to be kept.
        checksums: one for each stored memory.
    """

    fingerprint: Fingerprint
    config: dict[str, Any]
    contexts: tuple[StoredContext, ...]
    notes: dict[str, Any]
    checksums: tuple[str, ...]


def header_texts(header: Header) -> dict[str, str]:
    """The texts that keep a header.

    Raises:
        ValueError: a part of it is nothing that JSON has, or the notes have a key that is no text.
    """
    values = header._asdict() | {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": header.fingerprint._asdict(),
        "contexts": [_describe_context(context) for context in header.contexts],
    }
    try:
        texts = {name: _json(value) for name, value in values.items()}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"notes and contexts must be what JSON has: {error}.") from error
    _require_text_keys(header.notes)
    return texts | {"header_checksum": _checksum(texts)}


def _require_text_keys(notes: Any) -> None:
    """Refuses other keys: JSON makes texts of them, perhaps of two the same one."""
    if isinstance(notes, dict):
        for key, value in notes.items():
            require(
                isinstance(key, str),
                f"notes has the key {shown(key)}; JSON has only texts as keys: make it one, "
                f"{shown(str(key))}.",
            )
            _require_text_keys(value)
    elif isinstance(notes, list | tuple):
        for value in notes:
            _require_text_keys(value)


def context_bytes(context: StoredContext) -> int:
    """How many bytes a context takes in the header of a file, its checksum aside."""
    return len(json.dumps(_json(_describe_context(context))))


def _describe_context(context: StoredContext) -> dict[str, Any]:
    return vars(context) | {"write_losses": [_shortest(row) for row in context.write_losses]}


def _shortest(row: tuple[float, ...]) -> list[float]:
    """Returns numbers of the fewest digits that are the same in float32."""
    with np.errstate(over="ignore"):
        return [float(str(loss)) for loss in np.asarray(row, np.float32)]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def parse_header(path: Any, texts: Mapping[str, str]) -> Header:
    """Reads the header of the file at `path` from its texts.

    Raises:
        ValueError: it is none, of another version, damaged, or has a part of a wrong type.
    """
    require(
        texts.get("format") == json.dumps(FORMAT),
        f"{path} is a safetensors file, but not a memory of gradmem_jax.",
    )
    require(
        texts.get("version") == json.dumps(VERSION),
        f"{path} has format version {one_line(str(texts.get('version')), 20)}; this gradmem_jax "
        f"reads {VERSION!r}.",
    )
    require(
        texts.get("header_checksum") == _checksum(texts),
        f"{path} is damaged: its header does not fit its checksum.",
    )
    try:
        return _parse(texts)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged: a part of its header is missing or of another type "
            f"({one_line(repr(error), 300)}); write the contexts again."
        ) from error


def _parse(texts: Mapping[str, str]) -> Header:
    values = {name: parse_json(texts[name], name) for name in Header._fields}
    require_instance("config", values["config"], dict)
    require_instance("notes", values["notes"], dict)
    contexts, checksums = values["contexts"], values["checksums"]
    require_instance("contexts", contexts, list)
    require_instance("checksums", checksums, list)
    fingerprint = Fingerprint(**values["fingerprint"])
    for text in (*fingerprint, *checksums):
        require_instance("a fingerprint or checksum", text, str)
    require(
        0 < len(contexts) == len(checksums),
        f"{len(contexts)} contexts have {len(checksums)} checksums",
    )
    parsed = tuple(_parse_context(**context) for context in contexts)
    return Header(fingerprint, values["config"], parsed, values["notes"], tuple(checksums))


def _parse_context(
    name: str, num_tokens: Any, write_losses: list[list[float]], final_loss: Any
) -> StoredContext:
    require_instance("write_losses", write_losses, list)
    rows = []
    for row in write_losses:
        require_instance("a row of write_losses", row, list)
        numbers = all(type(loss) in (int, float) for loss in row)
        require(numbers, f"write_losses has the row {shown(row)}, not of numbers.")
        rows.append(tuple(map(float, row)))
    loss = float(final_loss) if type(final_loss) is int else final_loss
    return StoredContext(name, num_tokens, tuple(rows), loss)


def _checksum(texts: Mapping[str, str]) -> str:
    kept = {name: text for name, text in texts.items() if name != "header_checksum"}
    return hash_bytes(json.dumps(kept, sort_keys=True).encode())
