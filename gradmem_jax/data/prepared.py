"""Records of a text task that TFDS wrote to disk, read back.

TFDS imports the modules that a data set's own `features.json` names. So that file must be the one
that `prepare` writes before TFDS looks at the folder.
"""

import functools
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

from gradmem_jax.checks import require
from gradmem_jax.data.records import Record, Records, Skipped


def is_prepared(folder: str | pathlib.Path) -> bool:
    """Whether TFDS wrote a folder."""
    return (pathlib.Path(folder) / "dataset_info.json").exists()


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


def _description() -> Any:
    """What TFDS writes of `record_features` into `features.json`."""
    with tempfile.TemporaryDirectory() as folder:
        record_features().save_config(folder)
        return json.loads((pathlib.Path(folder) / "features.json").read_text(encoding="utf-8"))


def _check_description(folder: pathlib.Path) -> None:
    """Raises ValueError unless a folder's description says what `prepare` says."""

    def read(name: str) -> Any:
        try:
            return json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{folder / name} cannot be read; prepare the records again."
            ) from error

    require(
        read("features.json") == _description(),
        f"{folder / 'features.json'} describes other fields than those of records, which TFDS "
        "would run code of; prepare the records again.",
    )
    info = read("dataset_info.json")
    splits = info.get("splits", []) if isinstance(info, dict) else None
    templates = [
        split.get("filepathTemplate", "") if isinstance(split, dict) else None
        for split in (splits if isinstance(splits, list) else [None])
    ]
    require(
        all(isinstance(template, str) and not {*"/\\"} & {*template} for template in templates),
        f"{folder / 'dataset_info.json'} names files outside of the folder, or is damaged; prepare "
        "the records again.",
    )


def read_prepared(folder: pathlib.Path, split: str, data_name: str) -> Records:
    """Reads the records of a split that `prepare` wrote.

    Args:
        folder: where they are.
        split: "train", "validation" or "test".
        data_name: that of the task that reads them.

    Raises:
        ValueError: they are another task's, the split was not written, the files are damaged, or
            their description is none that `prepare` writes.
    """
    import tensorflow_datasets as tfds  # takes seconds

    _check_description(folder)
    builder = tfds.builder_from_directory(str(folder))
    found = (builder.info.metadata or {}).get("records", "records without a name")
    require(
        found == data_name,
        f"{folder} holds {found}, this task reads {data_name}: set data_dir to the task's own "
        "folder, or prepare that.",
    )
    require(
        split in builder.info.splits,
        f"{folder} has no split {split!r}, only {sorted(builder.info.splits)}; prepare it.",
    )
    skipped = json.loads(builder.info.metadata["skipped"]).get(split, [])
    rows = builder.as_data_source(split=split)
    kept = (
        Record(
            _text(row["id"]),
            _text(row["context"]),
            _text(row["question"]),
            tuple(map(_text, row["answers"])),
            tuple(map(int, row["answer_starts"])),
        )
        for row in rows
    )
    return Records(tuple(kept), tuple(Skipped(*pair) for pair in skipped))


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
