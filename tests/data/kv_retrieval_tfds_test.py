"""What the TFDS builder writes is what the source makes."""

import dataclasses

import numpy as np
from absl.testing import absltest

from gradmem_jax.data.kv_retrieval import KVRetrievalConfig, KVRetrievalSource
from gradmem_jax.data.kv_retrieval_tfds import prepare
from gradmem_jax.data.pipeline import make_iterator

TASK = dict(num_pairs=3, noise=0.25, queries_per_context=2, seed=5)


class KVRetrievalTFDSTest(absltest.TestCase):
    def test_disk_and_source_agree(self):
        folder = self.create_tempdir().full_path
        counts = {"train": 12, "validation": 5, "test": 3}
        task = KVRetrievalConfig(**TASK)
        builder = prepare(task, folder, num_train=12, num_validation=5, num_test=3)
        for split, count in counts.items():
            written = builder.as_data_source(split=split)
            source = KVRetrievalSource(KVRetrievalConfig(**TASK, split=split, num_samples=count))
            self.assertLen(written, count)
            for i in range(count):
                self.assertEqual(written[i].keys(), source[i].keys())
                for name, value in source[i].items():
                    np.testing.assert_array_equal(written[i][name], value)
        batch = next(make_iterator(builder.as_data_source(split="train"), 4))
        self.assertEqual(batch["query_ids"].shape, (4, 2, 9))

        again = prepare(task, folder, num_train=12, num_validation=5, num_test=3)
        self.assertLen(again.as_data_source(split="validation"), 5)

    def test_tasks_of_one_folder_are_kept_apart(self):
        folder, task = self.create_tempdir().full_path, KVRetrievalConfig(**TASK)
        for changes in ({}, {"seed": 6}, {"noise": 0.5}):
            changed = dataclasses.replace(task, **changes)
            (written,) = prepare(
                changed, folder, num_train=1, num_validation=1, num_test=1
            ).as_data_source(split="train")
            np.testing.assert_equal(written, changed.source("train")[0])

    def test_refusal(self):
        with self.assertRaisesRegex(ValueError, "num_validation=0"):
            prepare(KVRetrievalConfig(), "unused", num_validation=0)


if __name__ == "__main__":
    absltest.main()
