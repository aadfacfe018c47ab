"""KV retrieval: format, determinism, unique keys, splits that cannot overlap, refusals."""

import dataclasses
import itertools
import re

import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.data.kv_retrieval import KVRetrievalConfig, KVRetrievalSource, TokenKind, render
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.tokenizers.characters import kv_tokenizer


def samples(count=40, **fields):
    source = KVRetrievalSource(KVRetrievalConfig(**fields))
    return [source[i] for i in range(count)]


def pairs_of(sample, tokenizer):
    context = tokenizer.decode(sample["context_ids"])
    return dict(re.findall(r"!([^!:]+):([^!:]+)!", context))


class KVRetrievalTest(parameterized.TestCase):
    @parameterized.parameters(
        dict(num_pairs=4, queries_per_context=3),
        dict(num_pairs=9, key_length=1, value_length=3, queries_per_context=9),
        dict(num_pairs=5, key_length=1, value_length=1, alphabet_size=512),
    )
    def test_text(self, **fields):
        config = KVRetrievalConfig(**fields)
        tokenizer = kv_tokenizer(config.alphabet_size)
        key, value = f".{{{config.key_length}}}", f".{{{config.value_length}}}"
        for sample in samples(**fields):
            context, *queries = render(sample, tokenizer).splitlines()
            self.assertRegex(context, rf"^(!{key}:{value}!){{{config.num_pairs}}}\|$")
            self.assertLen(context, config.context_length)
            pairs = pairs_of(sample, tokenizer)
            self.assertLen(pairs, config.num_pairs)
            self.assertLen(queries, config.queries_per_context)
            asked = set()
            for query in queries:
                match = re.fullmatch(rf"\?!({key}): -> ({value})!\|", query)
                self.assertEqual(pairs[match[1]], match[2])
                asked.add(match[1])
            self.assertLen(asked, config.queries_per_context)
            self.assertEqual(sample["query_ids"].shape[1], config.query_length)

    def test_task(self):
        task = KVRetrievalConfig(num_pairs=3, num_segments=3, seed=7)
        self.assertEqual(task.kinds, ("pad", "key", "value", "delimiter", "noise"))
        source = task.source("validation", 2)
        self.assertEqual(
            (source.config.split, source.config.seed, len(source)), ("validation", 7, 2)
        )
        self.assertEqual(source[0]["context_ids"].shape, (3, *task.context_buckets))
        self.assertEqual(source[0]["query_ids"].shape, (1, *task.query_buckets))
        self.assertEqual(task.tokenizer.decode([task.pad_id, 4]), "a")
        batch = next(make_iterator(source, 2, task=task))
        self.assertEqual(batch["context_kinds"].shape, (2, 3, *task.context_buckets))
        with self.assertRaisesRegex(ValueError, "split='dev'"):
            task.source("dev")

    def test_arrays(self):
        (sample,) = samples(1, num_pairs=3, queries_per_context=2)
        self.assertEqual(
            {name: x.dtype.name for name, x in sample.items()},
            {
                "context_ids": "int32",
                "context_kinds": "int8",
                "query_ids": "int32",
                "labels": "int32",
                "value_mask": "bool",
            },
        )
        kinds = "".join("_KVDN"[kind] for kind in sample["context_kinds"])
        self.assertEqual(kinds, "DKKDVVD" * 3 + "D")
        is_target = sample["labels"] >= 0
        np.testing.assert_array_equal(is_target[0], [0] * 5 + [1] * 4)
        np.testing.assert_array_equal(sample["labels"][is_target], sample["query_ids"][is_target])
        np.testing.assert_array_equal(sample["value_mask"][0], [0] * 5 + [1] * 2 + [0] * 2)

    @parameterized.parameters(0.25, 0.5, 0.75)
    def test_noise_stands_between_pairs(self, noise):
        config = KVRetrievalConfig(num_pairs=6, noise=noise)
        tokenizer = kv_tokenizer(62)
        for sample in samples(num_pairs=6, noise=noise):
            text = tokenizer.decode(sample["context_ids"])
            self.assertRegex(text, r"^([^!:|]*!..:..!){6}[^!:|]*\|$")
            is_noise = sample["context_kinds"] == TokenKind.NOISE
            self.assertEqual(is_noise.sum(), config.num_noise)
            self.assertAlmostEqual(is_noise.mean(), noise, delta=0.03)
            clean = tokenizer.decode(sample["context_ids"][~is_noise])
            self.assertRegex(clean, r"^(!..:..!){6}\|$")

    def test_segments_hold_equal_parts_of_the_pairs(self):
        fields = dict(num_pairs=6, queries_per_context=6, noise=0.25)
        tokenizer = kv_tokenizer(62)
        for sample in samples(num_segments=3, **fields):
            config = KVRetrievalConfig(num_segments=3, **fields)
            self.assertEqual(sample["context_ids"].shape, (3, config.context_length))
            self.assertEqual(sample["context_kinds"].shape, (3, config.context_length))
            segments = [tokenizer.decode(ids) for ids in sample["context_ids"]]
            for segment in segments:
                self.assertLen(re.findall(r"![^!:]+:[^!:]+!", segment), 2)
                self.assertEndsWith(segment, "|")
            for ids, part in zip(sample["query_ids"], sample["query_segments"], strict=True):
                key, value = re.match(r"\?!(..):(..)!", tokenizer.decode(ids)).groups()
                self.assertIn(f"!{key}:{value}!", segments[part])

    def test_one_segment_is_the_context_without_segments(self):
        (sample,), (segments,) = (samples(1, num_pairs=6, num_segments=t) for t in (1, 2))
        whole = np.concatenate([ids[:-1] for ids in segments["context_ids"]])
        np.testing.assert_array_equal(sample["context_ids"][:-1], whole)

    def test_samples_are_a_function_of_seed_split_and_index(self):
        text = lambda **fields: [s["context_ids"].tobytes() for s in samples(**fields)]
        first = text(seed=3)
        self.assertEqual(first, text(seed=3))
        others = [text(seed=4), *(text(seed=3, split=split) for split in ("validation", "test"))]
        self.assertLen(set(itertools.chain(first, *others)), 160)

    def test_prefix_of_a_stream_does_not_depend_on_its_length(self):
        short, long = samples(num_samples=50), samples(num_samples=5000)
        for a, b in zip(short, long, strict=True):
            np.testing.assert_array_equal(a["context_ids"], b["context_ids"])

    def test_no_set_of_pairs_of_training_is_in_another_split(self):
        fields = dict(num_pairs=2, key_length=1, value_length=1, alphabet_size=3)
        tokenizer = kv_tokenizer(3)
        seen = {"train": set(), "validation": set(), "test": set()}
        for split, contents in seen.items():
            for seed in range(3):
                for sample in samples(200, **fields, split=split, seed=seed):
                    contents.add(frozenset(pairs_of(sample, tokenizer).items()))
        self.assertNotIn(set(), seen.values())
        self.assertGreater(len(seen["train"]), len(seen["validation"] | seen["test"]))
        self.assertEmpty(seen["train"] & (seen["validation"] | seen["test"]))

    def test_symbols_and_asked_pairs_are_uniform(self):
        tokenizer = kv_tokenizer(8)
        count, places = np.zeros(8), np.zeros(4)
        for sample in samples(1500, alphabet_size=8, num_pairs=4):
            values = sample["context_ids"][sample["context_kinds"] == TokenKind.VALUE]
            count += np.bincount(values - tokenizer.encode("a")[0], minlength=8)
            query = tokenizer.decode(sample["query_ids"][0])
            places[list(pairs_of(sample, tokenizer)).index(query[2:4])] += 1
        np.testing.assert_allclose(count / count.sum(), 1 / 8, rtol=0.08)
        np.testing.assert_allclose(places / places.sum(), 1 / 4, rtol=0.15)

    def test_all_keys_can_be_used(self):
        (sample,) = samples(1, num_pairs=9, key_length=2, alphabet_size=3)
        self.assertLen(pairs_of(sample, kv_tokenizer(3)), 9)

    def test_keys_too_many_to_number(self):
        (sample,) = samples(1, num_pairs=3, key_length=12)
        self.assertLen(pairs_of(sample, kv_tokenizer(62)), 3)

    @parameterized.parameters(
        (dict(num_pairs=10, key_length=1, alphabet_size=9), "there are 9 of length 1"),
        (dict(num_pairs=2, queries_per_context=3), "queries_per_context=3"),
        (dict(num_pairs=4, num_segments=3), "num_pairs=4 must be a multiple of num_segments=3"),
        (dict(num_segments=0), "num_segments=0"),
        (dict(noise=1.0), "noise=1.0"),
        (dict(noise=-0.1), "noise=-0.1"),
        (dict(alphabet_size=0), "alphabet_size=0"),
        (dict(key_length=0), "key_length=0"),
        (dict(split="dev"), "split='dev'"),
        (dict(seed=-1), "seed=-1"),
        (dict(num_samples=0), "num_samples=0"),
        (dict(num_pairs=2.0), "num_pairs=2.0"),
    )
    def test_refusals(self, fields, message):
        with self.assertRaisesRegex(ValueError, message):
            KVRetrievalConfig(**fields)

    def test_a_task_too_small_to_split_is_refused(self):
        config = KVRetrievalConfig(num_pairs=1, key_length=1, value_length=1, alphabet_size=1)
        with self.assertRaisesRegex(ValueError, "too few different samples"):
            for split in ("train", "validation", "test"):
                KVRetrievalSource(dataclasses.replace(config, split=split))[0]

    def test_index_outside_the_stream(self):
        source = KVRetrievalSource(KVRetrievalConfig(num_samples=3))
        self.assertLen(source, 3)
        for index in (-1, 3):
            with self.assertRaises(IndexError):
                source[index]


if __name__ == "__main__":
    absltest.main()
