"""Targets by character offsets, buckets, records that no sample can be made of."""

import dataclasses
import itertools
from unittest import mock

import chex
import numpy as np
import tokenizers
from absl.testing import absltest, parameterized
from tokenizers import models, pre_tokenizers

from gradmem_jax.data import text_task
from gradmem_jax.data.babi.task import BabiConfig
from gradmem_jax.data.records import Record, Records
from gradmem_jax.data.text_source import (
    encode_target,
    encode_texts,
    length_buckets,
    question_source,
)
from gradmem_jax.losses import IGNORE
from gradmem_jax.tokenizers.text_tokenizer import load_tokenizer, word_tokenizer, wrap_tokenizer
from tests.shared_data import data_dir


def bpe_tokenizer(merges, pre_tokenizer=None):
    """Characters and merges of them, in words if there is a pre-tokenizer."""
    symbols = sorted({c for pair in merges for c in "".join(pair)} | set("ab:? "))
    tokens = ["[PAD]", "[END]", *symbols, *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    backend.add_special_tokens(["[PAD]", "[END]"])
    if pre_tokenizer:
        backend.pre_tokenizer = pre_tokenizer
    return wrap_tokenizer(backend)


class TextSourceTest(parameterized.TestCase):
    def target_tokens(self, tokenizer, prompt, answer):
        ids, start = encode_target(tokenizer, prompt, answer)
        self.assertEqual(ids[-1], tokenizer.end_id)
        return [tokenizer.backend.id_to_token(i) for i in ids[start:-1]]

    def test_target_of_tokenizers_that_keep_the_blank(self):
        metaspace = pre_tokenizers.Metaspace()
        merges = [("\u2581", "a"), ("\u2581a", "b")]
        tokenizer = bpe_tokenizer(merges, metaspace)
        self.assertEqual(self.target_tokens(tokenizer, "a:", "ab"), ["\u2581ab"])
        plain = bpe_tokenizer([(" ", "a")])
        self.assertEqual(self.target_tokens(plain, "a:", "ab"), [" a", "b"])

    def test_target_that_cannot_be_told_from_the_prompt(self):
        self.assertIsNone(encode_target(bpe_tokenizer([(":", " ")]), "a:", "ab"))
        self.assertIsNone(encode_target(word_tokenizer(["a"]), "", "a"))
        self.assertIsNone(encode_target(word_tokenizer(["a"]), "a", ""))

    @parameterized.parameters("東京", "naïve café", "😀 yes", "1,000")
    def test_target_of_gpt2(self, answer):
        tokenizer = load_tokenizer(data_dir() / "gpt2_tokenizer")
        ids, start = encode_target(tokenizer, "question: é? answer:", answer)
        self.assertEqual(tokenizer.backend.decode(ids[:start].tolist()), "question: é? answer:")
        self.assertEqual(tokenizer.backend.decode(ids[start:-1].tolist()), f" {answer}")

    def test_contexts_and_prompts_begin_as_the_tokenizer_says(self):
        plain = bpe_tokenizer([])
        begins = dataclasses.replace(plain, begin_id=plain.backend.token_to_id("?"))
        records = Records((Record("a", "ab", "a:", ("b",)),))
        want, got = (question_source(records, t, str)[0] for t in (plain, begins))
        begin = begins.begin_id
        self.assertEqual(got["context_ids"].tolist(), [begin, *want["context_ids"]])
        self.assertEqual(got["query_ids"].tolist(), [[begin, *want["query_ids"][0]]])
        self.assertEqual(got["labels"].tolist(), [[IGNORE, *want["labels"][0]]])
        task = BabiConfig(tokenizer_path="x", add_begin_token=True)
        with mock.patch.object(text_task, "read_tokenizer", lambda *_, **__: begins):
            self.assertEqual(task.tokenizer.begin_id, begin)
            off = dataclasses.replace(task, add_begin_token=False)
            self.assertIsNone(off.tokenizer.begin_id)

    def test_no_text_begins_with_padding(self):
        plain = bpe_tokenizer([])
        records = Records((Record("a", "ab", "a:", ("b",)),))
        both = dataclasses.replace(plain, begin_id=plain.pad_id)
        with self.assertLogs("absl", "WARNING") as logs:
            chex.assert_trees_all_equal(
                *(question_source(records, tokenizer, str)[0] for tokenizer in (plain, both))
            )
        self.assertLen(logs.output, 1)
        self.assertRegex(logs.output[0], r"token '\[PAD\]' fills contexts, .* with pad_token\.")
        self.assertEqual(both.encode_start("ab").tolist(), plain.encode("ab").tolist())
        other = both.with_padding("?")
        self.assertEqual(other.encode_start("ab").tolist(), [plain.pad_id, *plain.encode("ab")])

    def test_records_without_sample(self):
        tokenizer = bpe_tokenizer([("?", " ")])
        records = Records(
            (
                Record("good", "ab", "a:", ("b",)),
                Record("joined", "ab", "a?", ("b",)),
                Record("padding", "a[PAD]b", "a:", ("b",)),
                Record("asked", "ab", "a[PAD]:", ("b",)),
                Record("unknown", "xyz", "a:", ("b",)),
            )
        )
        source = question_source(records, tokenizer, str)
        self.assertEqual([source.record(i).id for i in range(len(source))], ["good"])
        reasons = dict(source.skipped)
        self.assertIn("answer 'b' cannot be told", reasons["joined"])
        self.assertIn("the context holds the padding token", reasons["padding"])
        self.assertIn("the question or its answer holds the padding", reasons["asked"])
        self.assertIn("no tokens", reasons["unknown"])

    def test_equal_texts_share_an_array(self):
        tokenizer = word_tokenizer(["a b"])
        first, second, third = encode_texts(tokenizer, ["a b", "b", "a b"])
        self.assertIs(first, third)
        self.assertEqual(second.tolist(), tokenizer.encode("b").tolist())

    @parameterized.parameters(1, 2, 3, 5)
    def test_buckets_need_the_least_padding(self, count):
        lengths = np.array([3, 5, 8, 9, 20, 22, 23, 40, 41, 100])
        got = length_buckets(lengths, count, saving=0)
        self.assertLen(got, count)
        self.assertEqual(got[-1], 104)
        cost = lambda buckets: sum(min(b for b in buckets if b >= n) for n in lengths)
        others = itertools.combinations(range(8, 104, 8), count - 1)
        self.assertEqual(cost(got), min(cost((*chosen, 104)) for chosen in others))

    def test_buckets_are_few(self):
        self.assertEqual(length_buckets(np.array([4, 4])), (8,))
        self.assertEqual(length_buckets(np.array([4, 9, 40])), (8, 16, 40))
        near = np.array([16] * 97 + [8] * 3)
        self.assertEqual(length_buckets(near), (16,))
        self.assertEqual(length_buckets(near, saving=0.01), (8, 16))
        many = length_buckets(np.arange(1, 5000))
        self.assertLen(many, 4)
        self.assertGreaterEqual(many[-1], 4999)
        self.assertTrue(all(length % 64 == 0 for length in many))


if __name__ == "__main__":
    absltest.main()
