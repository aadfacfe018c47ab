"""Records of a text task that TFDS wrote to disk, read back."""

import json
import pathlib

from gradmem_jax.checks import require
from gradmem_jax.data.records import Record, Records, Skipped


def is_prepared(folder: str | pathlib.Path) -> bool:
    """Whether TFDS wrote a folder."""
    return (pathlib.Path(folder) / "dataset_info.json").exists()


def read_prepared(folder: pathlib.Path, split: str, data_name: str) -> Records:
    """Reads the records of a split that `prepare` wrote.

    Args:
        folder: where they are.
        split: "train", "validation" or "test".
        data_name: that of the task that reads them.

    Raises:
        ValueError: they are another task's, the split was not written, or the files are damaged.
    """
    import tensorflow_datasets as tfds  # takes seconds

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
