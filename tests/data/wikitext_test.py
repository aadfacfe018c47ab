"""WikiText: chunks of running text, one file for each split."""

import gzip
import pathlib

import numpy as np
from absl.testing import absltest

from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.data.wikitext import WikiTextConfig
from tests.shared_data import data_dir


def article(title, words):
    return f" \n = {title} = \n \n {words} \n = 1 rad = \n \n = = Part = = \n \n more \n"


TEXT = article("First", "one two three four five") + article("Second", "six seven eight")


class WikiTextTest(absltest.TestCase):
    def task(self, **fields):
        folder = pathlib.Path(self.create_tempdir().full_path)
        (folder / "wiki.train.raw").write_text(TEXT)
        (folder / "wiki.valid.raw.gz").write_bytes(gzip.compress(article("V", "one two").encode()))
        (folder / "wiki.test.raw").write_text(article("T", "three four"))
        return WikiTextConfig(data_dir=str(folder), **fields)

    def test_chunks(self):
        task = self.task(context_length=3, target_length=4)
        articles = [record.context for record in task.records("train").kept]
        self.assertEqual("".join(articles), TEXT)
        self.assertLen(articles, 2)
        self.assertStartsWith(articles[1], " = Second = \n")

        source = task.source("train")
        want = task.tokenizer.encode(TEXT)
        self.assertLen(source, len(want) // 7)
        for i in range(len(source)):
            sample, chunk = source[i], want[7 * i : 7 * i + 7]
            np.testing.assert_array_equal(sample["context_ids"], chunk[:3])
            np.testing.assert_array_equal(sample["query_ids"], chunk[None, 3:])
            np.testing.assert_array_equal(sample["labels"], sample["query_ids"])
            self.assertTrue(sample["value_mask"].all())
        record = source.record(0)
        self.assertEqual((record.context, record.question), ("= First =", ""))
        self.assertEqual(record.answers, ("one two three four",))
        batch = next(make_iterator(source, 2, task=task))
        self.assertEqual(batch["context_ids"].shape, (2, 3))
        self.assertEqual(batch["query_ids"].shape, (2, 1, 4))

    def test_files(self):
        task = self.task(
            context_length=2,
            target_length=2,
            validation_file="wiki.test.raw",
            test_file="wiki.valid.raw",
        )
        self.assertIn("= T =", task.records("validation").kept[0].context)
        with self.assertRaisesRegex(ValueError, "no file wiki.gone.raw or wiki.gone.raw.gz"):
            self.task(train_file="wiki.gone.raw").source("train")
        with self.assertRaisesRegex(ValueError, "three names"):
            self.task(train_file="wiki.test.raw")
        with self.assertRaisesRegex(ValueError, "no sample is left"):
            self.task(context_length=1000).source("train")
        with self.assertRaisesRegex(ValueError, "target_length=0"):
            self.task(target_length=0)

    def test_published_files(self):
        task = WikiTextConfig(
            data_dir=str(data_dir() / "wikitext"),
            train_file="wiki.valid.tokens",
            validation_file="wiki.test.tokens",
            tokenizer_path=str(data_dir() / "gpt2_tokenizer"),
        )
        self.assertEqual(len(task.records("test").kept), 60)
        self.assertEqual(sum(len(r.context) for r in task.records("test").kept), 1_288_556)
        source = task.source("test")
        self.assertEqual(source[0]["context_ids"].shape, (128,))
        self.assertEmpty(source.skipped)
        first = task.records("test").kept[0].context
        self.assertIn(source.record(0).context.strip(), first)


if __name__ == "__main__":
    absltest.main()
