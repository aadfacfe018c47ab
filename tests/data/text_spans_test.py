"""Spans of text files: the target is the span itself, splits share no text."""

import gzip
import pathlib

import numpy as np
from absl.testing import absltest

from gradmem_jax.data.text_spans import TextSpansConfig
from gradmem_jax.losses import IGNORE
from tests.shared_data import data_dir

WORDS = [f"w{i}" for i in range(200)]


class TextSpansTest(absltest.TestCase):
    def folder(self, files):
        folder = pathlib.Path(self.create_tempdir().full_path)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            packed = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
            (folder / name).write_bytes(packed)
        return str(folder)

    def test_samples_and_regions(self):
        folder = self.folder({"book.txt": " ".join(WORDS), "note.txt.gz": "w1 w2"})
        task = TextSpansConfig(data_dir=folder, num_tokens=4)
        seen = []
        for split, count in {"train": 40, "validation": 5, "test": 5}.items():
            with self.assertLogs("absl", "WARNING") as logs:
                source = task.source(split)
            self.assertIn("1 records skipped (note.txt.gz: ", logs.output[-1])
            self.assertAlmostEqual(len(source), count, delta=2)
            for i in range(len(source)):
                sample, record = source[i], source.record(i)
                self.assertEqual(record.answers, (record.context,))
                seen += record.context.split()
                ids, labels = sample["query_ids"][0], sample["labels"][0]
                self.assertEqual(task.tokenizer.decode(ids[:2]), "text :")
                np.testing.assert_array_equal(labels[:2], IGNORE)
                np.testing.assert_array_equal(labels[2:], sample["context_ids"])
                np.testing.assert_array_equal(ids[2:], sample["context_ids"])
            self.assertEqual((len(ids),), task.query_buckets)
        self.assertLen(set(seen), len(seen))  # no text in two spans
        self.assertGreater(len(seen), 190)
        self.assertContainsSubset(seen, WORDS)  # no word is cut

    def test_folders_are_splits(self):
        files = {f"{split}/1.txt": f"{split} a b" for split in ("train", "validation", "test")}
        task = TextSpansConfig(data_dir=self.folder(files), num_tokens=3)
        for split in ("train", "validation", "test"):
            self.assertEqual(task.source(split).record(0).context, f"{split} a b")
        del files["test/1.txt"]
        with self.assertRaisesRegex(ValueError, "test has no files"):
            TextSpansConfig(data_dir=self.folder(files)).source("test")

    def test_limit_of_characters(self):
        files = {f"train/{i}.txt": "abcd " * 4 for i in range(3)} | {"test/0.txt": "x"}
        task = TextSpansConfig(data_dir=self.folder(files), max_characters=30)
        with self.assertLogs("absl", "WARNING") as logs:
            records = task.records("train").kept
        self.assertEqual([len(record.context) for record in records], [20, 10])
        self.assertIn("max_characters=30 end in file 2 of 3, 1.txt", logs.output[0])

    def test_refusals(self):
        with self.assertRaisesRegex(ValueError, "num_tokens=0"):
            TextSpansConfig(num_tokens=0)
        with self.assertRaisesRegex(ValueError, "has no files"):
            TextSpansConfig(data_dir=self.folder({"a.pdf": "x"})).source("train")

    def test_published_file(self):
        task = TextSpansConfig(
            data_dir=str(data_dir() / "wikitext" / "wiki.test.raw.gz"),
            tokenizer_path=str(data_dir() / "gpt2_tokenizer"),
        )
        sources = [task.source(split) for split in ("train", "validation", "test")]
        self.assertGreater(len(sources[0]), 7 * len(sources[1]))
        self.assertEqual(sources[2][0]["query_ids"].shape, (1, 34))


if __name__ == "__main__":
    absltest.main()
