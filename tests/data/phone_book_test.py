"""Phone book: format, determinism, splits that cannot overlap, any tokenizer."""

import re

import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.data import phone_book
from gradmem_jax.data.phone_book import FIRST_NAMES, LAST_NAMES, PhoneBookConfig
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.losses import IGNORE
from gradmem_jax.tokenizers.text_tokenizer import character_tokenizer, load_tokenizer
from tests.shared_data import data_dir


class PhoneBookTest(parameterized.TestCase):
    def check_samples(self, task):
        source, decode = task.source("train", 20), task.tokenizer.decode
        for i in range(20):
            sample, records = source[i], source.records(i)
            context = decode(sample["context_ids"])
            self.assertEqual(context, records[0].context)
            self.assertEqual(source.record(i), records[0])
            book = dict(line.split(": ") for line in context.split("\n"))
            self.assertLen(book, task.num_entries)
            for name, number in book.items():
                self.assertRegex(f"{name}: {number}", r"^[A-Z]\w+ [A-Z]\w+: \d{3}-\d{4}$")
            asked = set()
            for ids, labels in zip(sample["query_ids"], sample["labels"], strict=True):
                is_target = labels != IGNORE
                name = decode(ids[: is_target.argmax()])
                self.assertEqual(decode(ids[is_target]).strip(), book[name.removesuffix(":")])
                self.assertEqual(ids[is_target][-1], task.tokenizer.end_id)
                asked.add(name)
            self.assertLen(asked, task.queries_per_context)
            self.assertLessEqual(len(sample["context_ids"]), task.context_buckets[-1])
            self.assertLessEqual(sample["query_ids"].shape[1], task.query_buckets[-1])

    def test_characters(self):
        task = PhoneBookConfig(num_entries=5, queries_per_context=3)
        self.check_samples(task)
        batch = next(make_iterator(task.source("train", 32), 32, task=task))
        self.assertEqual(batch["query_ids"].shape, (32, 3, *task.query_buckets))
        self.assertIn(batch["context_ids"].shape[1], task.context_buckets)

    def test_pretrained_tokenizer(self):
        path = str(data_dir() / "gpt2_tokenizer")
        self.check_samples(PhoneBookConfig(num_entries=4, tokenizer_path=path))

    def test_tokenizer_from_disk(self):
        file = self.create_tempfile("tokenizer.json").full_path
        made = character_tokenizer(["ab\n"])
        made.save(file)
        for tokenizer in (made, load_tokenizer(file)):
            ids = tokenizer.encode("b\na?")
            self.assertEqual(ids.tolist(), [5, 3, 4, 2])
            self.assertEqual(tokenizer.decode(ids[:3]), "b\na")

    def test_same_for_ever_and_split(self):
        fields = dict(num_entries=2, queries_per_context=2)
        task = PhoneBookConfig(**fields, seed=1)
        contexts = {}
        for split in ("train", "validation", "test"):
            source = task.source(split, 300)
            contexts[split] = {source.records(i)[0].context for i in range(300)}
            np.testing.assert_equal(source[7], task.source(split)[7])
            other = PhoneBookConfig(**fields, seed=2).source(split)
            self.assertNotEqual(source.records(0), other.records(0))
            self.assertLen(contexts[split], 300)
        self.assertEmpty(contexts["train"] & (contexts["validation"] | contexts["test"]))

    def test_the_order_of_lines_decides_no_split(self):
        for split in ("train", "validation", "test"):
            source = PhoneBookConfig(num_entries=3).source(split)
            for i in range(20):
                lines = source.record(i).context.split("\n")
                self.assertEqual(phone_book._split_of("\n".join(reversed(lines))), split)

    def test_names(self):
        for names in (FIRST_NAMES, LAST_NAMES):
            self.assertLen(set(names), len(names))
            self.assertTrue(all(re.fullmatch("[A-Z][a-z]+", name) for name in names))

    @parameterized.parameters(
        (dict(num_entries=0), "num_entries=0"),
        (dict(num_entries=10**6), "num_entries=1000000 needs as many different names"),
        (dict(num_entries=2, queries_per_context=3), "queries_per_context=3"),
        (dict(seed=-1), "seed=-1"),
    )
    def test_refusals(self, fields, message):
        with self.assertRaisesRegex(ValueError, message):
            PhoneBookConfig(**fields)

    def test_wrong_split(self):
        with self.assertRaisesRegex(ValueError, "split='dev'"):
            PhoneBookConfig().source("dev")
        with self.assertRaisesRegex(IndexError, "index 3"):
            PhoneBookConfig().source("train", 3)[3]


if __name__ == "__main__":
    absltest.main()
