"""Text tasks as TFDS data sets on disk: their raw records as array_record; needs no TensorFlow."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from gradmem_jax.checks import require, require_choice
from gradmem_jax.data.prepared import make_builder, record_features
from gradmem_jax.data.records import SPLITS, Record, log_skipped
from gradmem_jax.data.text_task import TextTask


@dataclasses.dataclass(kw_only=True)
class TextBuilderConfig(tfds.core.BuilderConfig):
    """Which task, and which splits of it.

    Attributes:
        task: the task; without data_dir its files are downloaded.
        splits: the splits to write.
    """

    task: TextTask
    splits: Sequence[str] = SPLITS


class TextRecords(tfds.core.GeneratorBasedBuilder):
    """The records of a text task, before tokenisation."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS: list[Any] = []

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=f"Records of {self.builder_config.task}.",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
            features=record_features(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        task = self.builder_config.task
        if not task.data_dir:
            task = task.downloaded(dl_manager.download_and_extract(task.urls))
        records = {split: task.records(split) for split in self.builder_config.splits}
        for split, found in records.items():
            log_skipped(f"{self.builder_config.name}, {split}", found.skipped)
        skipped = {split: found.skipped for split, found in records.items()}
        self.info.metadata["records"] = self.builder_config.task.data_name
        self.info.metadata["skipped"] = json.dumps(skipped)
        return {split: self._generate_examples(found.kept) for split, found in records.items()}

    def _generate_examples(self, records: Sequence[Record]) -> Iterator[tuple[int, Any]]:
        return ((i, record._asdict()) for i, record in enumerate(records))


def prepare(task: TextTask, data_dir: str | pathlib.Path, *, splits: Sequence[str] = SPLITS) -> Any:
    """Writes the records of a task to disk, unless they are there.

    Args:
        task: the task. With `data_dir` its raw files are read from there; without, they are
            downloaded from where they are published.
        data_dir: TFDS data folder.
        splits: the splits to write.

    Returns:
        The builder. `dataclasses.replace(task, data_dir=str(builder.data_path))` is the task that
        reads what was written.

    Raises:
        ValueError: files are missing or damaged, or the task's cannot be downloaded.

    Examples:
        >>> from gradmem_jax.data.text_spans import TextSpansConfig
        >>> from gradmem_jax.data.text_tfds import prepare
        >>> for split in ("train", "validation", "test"):  # a folder of texts for each
        ...     os.makedirs(f"stories/{split}", exist_ok=True)
        ...     with open(f"stories/{split}/one.txt", "w") as file:
        ...         _ = file.write("Mary went home . " * 9)
        >>> task = TextSpansConfig(num_tokens=4, data_dir="stories")
        >>> builder = prepare(task, "prepared")
        Downloading and preparing dataset ...
        >>> prepared = dataclasses.replace(task, data_dir=str(builder.data_path))
        >>> len(prepared.source("train"))
        9
    """
    for split in splits:
        require_choice("splits", split, SPLITS)
    require(
        bool(task.data_dir or task.urls),
        f"the files of {type(task).__name__} cannot be downloaded; set its data_dir to them.",
    )
    name = f"{task.data_name}_{'_'.join(splits)}"
    if task.data_dir:  # other raw files, another data set
        path = str(pathlib.Path(task.data_dir).resolve())
        name += f"_{hashlib.blake2b(path.encode(), digest_size=4).hexdigest()}"
    config = TextBuilderConfig(name=name, task=task, splits=tuple(splits))
    builder = make_builder(TextRecords, data_dir, config)
    builder.download_and_prepare()
    return builder
