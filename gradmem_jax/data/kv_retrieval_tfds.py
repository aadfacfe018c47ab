"""KV retrieval as a TFDS data set on disk, for those who want fixed files; needs no TensorFlow."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gradmem_jax.checks import require, require_integer
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig, KVRetrievalSource
from gradmem_jax.data.prepared import make_builder


@dataclasses.dataclass(kw_only=True)
class KVRetrievalBuilderConfig(tfds.core.BuilderConfig):
    """Which task, and how many samples of it.

    Attributes:
        task: the task; its split and number of samples are set by the splits below.
        num_train: contexts in split "train".
        num_validation: contexts in split "validation".
        num_test: contexts in split "test".
    """

    task: KVRetrievalConfig
    num_train: int = 1_000_000
    num_validation: int = 5000
    num_test: int = 5000


class KVRetrieval(tfds.core.GeneratorBasedBuilder):
    """Key-value pairs of random symbols; sample i on disk is sample i of `KVRetrievalSource`."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First version.", "1.1.0": "A split test."}
    BUILDER_CONFIGS: list[Any] = []

    def _info(self) -> tfds.core.DatasetInfo:
        task = self.builder_config.task
        queries = (task.queries_per_context, task.query_length)
        tensor = tfds.features.Tensor
        return self.dataset_info_from_configs(
            description=f"{task.num_pairs} key-value pairs a context, and queries for them.",
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "context_ids": tensor(shape=(task.context_length,), dtype=np.int32),
                    "context_kinds": tensor(shape=(task.context_length,), dtype=np.int8),
                    "query_ids": tensor(shape=queries, dtype=np.int32),
                    "labels": tensor(shape=queries, dtype=np.int32),
                    "value_mask": tensor(shape=queries, dtype=np.bool_),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        counts = {
            "train": self.builder_config.num_train,
            "validation": self.builder_config.num_validation,
            "test": self.builder_config.num_test,
        }
        return {split: self._generate_examples(split, n) for split, n in counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, Any]]:
        task = dataclasses.replace(self.builder_config.task, split=split, num_samples=count)
        source = KVRetrievalSource(task)
        return ((i, source[i]) for i in range(count))


def prepare(
    task: KVRetrievalConfig,
    data_dir: str | pathlib.Path,
    *,
    num_train: int = 1_000_000,
    num_validation: int = 5000,
    num_test: int = 5000,
) -> Any:
    """Writes a task to disk as array_record files, unless it is there.

    Args:
        task: the task; split and number of samples are ignored.
        data_dir: TFDS data folder.
        num_train: contexts in split "train".
        num_validation: contexts in split "validation".
        num_test: contexts in split "test".

    Returns:
        The TFDS builder. `builder.as_data_source(split="train")` is a random-access source for
        `make_iterator`.

    Raises:
        ValueError: a number of samples is not positive, or contexts have several segments.

    Examples:
        >>> from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
        >>> from gradmem_jax.data.kv_retrieval_tfds import prepare
        >>> task = KVRetrievalConfig(num_pairs=2)
        >>> builder = prepare(task, "data", num_train=4, num_validation=2, num_test=2)
        Downloading and preparing dataset ...
        >>> len(builder.as_data_source(split="train"))
        4
    """
    require(task.num_segments == 1, "num_segments must be 1: contexts on disk have one segment.")
    require_integer("num_train", num_train, 1)
    require_integer("num_validation", num_validation, 1)
    require_integer("num_test", num_test, 1)
    name = (
        f"n{task.num_pairs}_k{task.key_length}v{task.value_length}_a{task.alphabet_size}"
        f"_noise{task.noise:g}_r{task.queries_per_context}_seed{task.seed}"
        f"_{num_train}_{num_validation}_{num_test}"
    )
    config = KVRetrievalBuilderConfig(
        name=name,
        task=task,
        num_train=num_train,
        num_validation=num_validation,
        num_test=num_test,
    )
    builder = make_builder(KVRetrieval, data_dir, config)
    builder.download_and_prepare()
    return builder
