"""Records of a text task that TFDS wrote to disk, read back.

TFDS itself would import the modules that the folder's `features.json` names, and read the files
that its `dataset_info.json` names. So the fields are those here, and the names of the files too.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradmem_jax.checks import require
from gradmem_jax.data.array_records import read_array_records
from gradmem_jax.data.records import Record, Records, Skipped
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.storage.reading import parse_json, read_json

_INFO, _METADATA = "dataset_info.json", "metadata.json"


def is_prepared(folder: str | pathlib.Path) -> bool:
    """Whether TFDS wrote a folder."""
    return (pathlib.Path(folder) / _INFO).exists()


@functools.cache
def record_features() -> Any:
    """The features of a TFDS data set of records."""
    import tensorflow_datasets as tfds  # takes seconds

    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            "id": text(),
            "context": text(),
            "question": text(),
            "answers": tfds.features.Sequence(text()),
            "answer_starts": tfds.features.Sequence(np.int32),
        }
    )


def make_builder(kind: Any, data_dir: str | pathlib.Path, config: Any) -> Any:
    """Makes a TFDS builder, which reads what is written already.

    Raises:
        ValueError: that is damaged.
    """
    try:
        return kind(data_dir=str(data_dir), config=config, file_format="array_record")
    except Exception as error:  # TFDS raises errors of several kinds
        raise ValueError(
            f"{data_dir} holds a data set {config.name} that cannot be read "
            f"({one_line(str(error), 300)}); remove it, and it is written again."
        ) from error


def read_prepared(folder: pathlib.Path, split: str, data_name: str) -> Records:
    """Reads the records of a split that `prepare` wrote.

    Args:
        folder: where they are.
        split: "train", "validation" or "test".
        data_name: that of the task that reads them.

    Raises:
        ValueError: they are another task's, the split was not written, or the files are damaged.
    """
    try:
        lengths = _shard_lengths(read_json(folder / _INFO, "description of records"))
        found, skipped = _metadata(read_json(folder / _METADATA, "description of records"), split)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{folder} is no folder of records, or its {_INFO} or {_METADATA} is damaged "
            f"({one_line(repr(error), 300)}); prepare the records again."
        ) from error
    require(
        found == data_name,
        f"{folder} holds {one_line(found, 100)}, this task reads {data_name}: set data_dir to the "
        "task's own folder, or prepare that.",
    )
    require(
        split in lengths,
        f"{folder} has no split {split!r}, only {shown(sorted(lengths))}; prepare it.",
    )
    return Records(tuple(_records(folder, split, lengths[split])), skipped)


def _shard_lengths(info: Any) -> dict[str, list[int]]:
    """How many records each file of a split has, by split."""
    lengths = {
        str(split["name"]): [int(length) for length in split.get("shardLengths", [])]
        for split in info.get("splits", [])
    }
    require(min((n for shards in lengths.values() for n in shards), default=0) >= 0, "less than 0")
    return lengths


def _metadata(metadata: Any, split: str) -> tuple[str, tuple[Skipped, ...]]:
    """The name of the records, and those of a split that were left out."""
    skipped = parse_json(metadata["skipped"], "skipped").get(split, [])
    return str(metadata["records"]), tuple(Skipped(str(name), str(why)) for name, why in skipped)


def _records(folder: pathlib.Path, split: str, lengths: list[int]) -> Iterator[Record]:
    for shard, length in enumerate(lengths):
        path = folder / f"text_records-{split}.array_record-{shard:05d}-of-{len(lengths):05d}"
        require(
            path.resolve().parent == folder.resolve(),
            f"{path} is a link out of its folder; copy the file there.",
        )
        rows = read_array_records(path) if length else []
        require(
            len(rows) == length,
            f"{path} is damaged: it has {len(rows)} records, and its folder says {length}.",
        )
        try:
            yield from map(_record, rows)
        except Exception as error:  # of a parser: of several kinds
            raise ValueError(
                f"{path} is damaged: it has something else than records "
                f"({one_line(repr(error), 300)}); prepare the records again."
            ) from error


def _record(row: bytes) -> Record:
    fields = record_features().deserialize_example_np(row)
    return Record(
        _text(fields["id"]),
        _text(fields["context"]),
        _text(fields["question"]),
        tuple(map(_text, fields["answers"])),
        tuple(map(int, fields["answer_starts"])),
    )


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
