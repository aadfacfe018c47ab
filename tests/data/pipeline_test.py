"""Batches: order, shards, padding, exact positions."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.losses import IGNORE


class Source:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return {"i": np.array(i)}


class TextSource:
    """Sample i holds lengths[i] times i + 1."""

    def __init__(self, lengths):
        self.context_lengths = np.array(lengths)

    def __len__(self):
        return len(self.context_lengths)

    def __getitem__(self, i):
        return {
            "context_ids": np.full(self.context_lengths[i], i + 1, np.int32),
            "context_kinds": np.full(self.context_lengths[i], 2, np.int8),
            "query_ids": np.array([[5, 6]], np.int32),
            "labels": np.array([[IGNORE, 6]], np.int32),
            "value_mask": np.array([[False, True]]),
        }


class Plain:
    """A source that does not know its lengths."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        return self.source[i]


@dataclasses.dataclass
class TextTask:
    buckets: tuple[int, ...]
    pad_id = 99
    query_buckets = (3,)

    @property
    def context_buckets(self):
        return self.buckets


def batches(length, batch_size, **options):
    return [batch["i"].tolist() for batch in make_iterator(Source(length), batch_size, **options)]


class PipelineTest(parameterized.TestCase):
    def test_order_and_remainder(self):
        self.assertEqual(batches(7, 3), [[0, 1, 2], [3, 4, 5]])
        self.assertEqual(batches(7, 3, num_threads=0), [[0, 1, 2], [3, 4, 5]])

    def test_padded_last_batch(self):
        *_, last = make_iterator(Source(7), 3, pad_last=True)
        self.assertEqual(last["i"].tolist(), [6, 6, 6])
        self.assertEqual(last["valid"].tolist(), [True, False, False])

    def test_shards_are_disjoint_and_cover_everything(self):
        parts = [batches(8, 2, shard_index=i, num_shards=2) for i in range(2)]
        self.assertEqual(parts, [[[0, 2], [4, 6]], [[1, 3], [5, 7]]])

    def test_shards_together_hold_the_batches_of_one_process(self):
        options = dict(repeat=True, shuffle_seed=3)
        whole = make_iterator(Source(10), 4, **options)
        parts = [
            make_iterator(Source(10), 2, shard_index=i, num_shards=2, **options) for i in (0, 1)
        ]
        for _ in range(7):  # several repetitions, none of which ends with a batch
            rows = [row for part in parts for row in next(part)["i"].tolist()]
            self.assertEqual(sorted(rows), sorted(next(whole)["i"].tolist()))
        self.assertEqual(parts[0].get_state(), whole.get_state())

    def test_shuffled_repetitions_differ(self):
        iterator = make_iterator(Source(64), 64, repeat=True, shuffle_seed=1)
        first, second = (next(iterator)["i"].tolist() for _ in range(2))
        self.assertNotEqual(first, second)
        self.assertEqual(sorted(first), list(range(64)))
        self.assertEqual(sorted(second), list(range(64)))
        again = make_iterator(Source(64), 64, repeat=True, shuffle_seed=1)
        self.assertEqual(next(again)["i"].tolist(), first)

    @parameterized.parameters(0, 2)
    def test_saved_position_is_exact(self, num_threads):
        options = dict(repeat=True, shuffle_seed=0, num_threads=num_threads)
        iterator = make_iterator(Source(10), 3, **options)
        for _ in range(5):
            next(iterator)
        state = iterator.get_state()
        want = [next(iterator)["i"].tolist() for _ in range(5)]
        other = make_iterator(Source(10), 3, **options)
        other.set_state(state)
        self.assertEqual([next(other)["i"].tolist() for _ in range(5)], want)

    def test_padding_to_buckets(self):
        task, source = TextTask(buckets=(4, 8)), TextSource([3, 2, 6, 4])
        plain = list(make_iterator(Plain(source), 2, task=task))
        self.assertEqual([batch["context_ids"].shape for batch in plain], [(2, 4), (2, 8)])
        batch = plain[0]
        self.assertEqual([b["index"].tolist() for b in plain], [[0, 1], [2, 3]])
        self.assertEqual(batch["context_ids"].tolist(), [[1, 1, 1, 99], [2, 2, 99, 99]])
        self.assertEqual(batch["context_kinds"].tolist(), [[2, 2, 2, 0], [2, 2, 0, 0]])
        self.assertEqual(batch["query_ids"].tolist(), [[[5, 6, 99]], [[5, 6, 99]]])
        self.assertEqual(batch["labels"].tolist(), [[[-100, 6, -100]]] * 2)
        self.assertEqual(batch["value_mask"].tolist(), [[[False, True, False]]] * 2)
        with self.assertRaisesRegex(ValueError, "context_ids of 6 tokens do not fit"):
            list(make_iterator(Plain(source), 2, task=TextTask(buckets=(4,))))

    def test_shards_of_unknown_lengths_have_equal_shapes(self):
        task, source = TextTask(buckets=(4, 8)), Plain(TextSource([2, 8, 3, 7]))
        parts = [
            next(make_iterator(source, 2, task=task, shard_index=i, num_shards=2)) for i in (0, 1)
        ]
        self.assertEqual([part["index"].tolist() for part in parts], [[0, 2], [1, 3]])
        self.assertEqual([part["context_ids"].shape for part in parts], [(2, 8), (2, 8)])

    @parameterized.parameters(None, 3)
    def test_samples_of_a_bucket_come_together(self, shuffle_seed):
        lengths = [2, 8, 3, 7, 4, 1, 5, 8, 2, 3, 6]
        task, source = TextTask(buckets=(4, 8)), TextSource(lengths)
        batches = list(make_iterator(source, 2, task=task, shuffle_seed=shuffle_seed))
        self.assertLen(batches, 5)
        shapes = [batch["context_ids"].shape[1] for batch in batches]
        self.assertIn(shapes.count(4), (2, 3))  # of six short samples; one may be the dropped one
        if shuffle_seed is None:
            self.assertEqual(shapes, sorted(shapes))
        seen = [int(row[0]) for batch in batches for row in batch["context_ids"]]
        self.assertLen(set(seen), 10)
        for batch in batches:
            self.assertEqual(batch["index"].tolist(), (batch["context_ids"][:, 0] - 1).tolist())
            for row in batch["context_ids"]:
                self.assertEqual((row != 99).sum(), lengths[row[0] - 1])

    def test_padded_last_batch_of_buckets_covers_everything(self):
        task, source = TextTask(buckets=(4, 8)), TextSource([2, 8, 3, 7, 4])
        parts = [
            list(make_iterator(source, 2, task=task, pad_last=True, shard_index=i, num_shards=2))
            for i in range(2)
        ]
        seen = []
        for first, second in zip(*parts, strict=True):  # equal shapes in all shards
            self.assertEqual(first["context_ids"].shape, second["context_ids"].shape)
            for batch in (first, second):
                seen += batch["context_ids"][batch["valid"]][:, 0].tolist()
        self.assertEqual(sorted(seen), [1, 2, 3, 4, 5])

    @parameterized.parameters(0, 2)
    def test_saved_position_of_buckets_is_exact(self, num_threads):
        task, source = TextTask(buckets=(4, 8)), TextSource([2, 8, 3, 7, 4, 1, 5])
        options = dict(task=task, repeat=True, shuffle_seed=1, num_threads=num_threads)
        iterator = make_iterator(source, 2, **options)
        epochs = [[next(iterator)["context_ids"].tolist() for _ in range(3)] for _ in range(3)]
        self.assertNotEqual(epochs[0], epochs[1])
        iterator = make_iterator(source, 2, **options)
        for _ in range(4):
            next(iterator)
        state = iterator.get_state()
        want = [next(iterator)["context_ids"].tolist() for _ in range(5)]
        other = make_iterator(source, 2, **options)
        other.set_state(state)
        self.assertEqual([next(other)["context_ids"].tolist() for _ in range(5)], want)
        self.assertEqual(want[:2], epochs[1][1:])

    @parameterized.parameters(
        (dict(batch_size=0), "batch_size=0"),
        (dict(batch_size=11), "10 samples do not fill one batch of 11 in each of 1 shards"),
        (dict(batch_size=6, num_shards=2), "of 6 in each of 2 shards; .* at least 12 samples"),
        (dict(batch_size=2, num_shards=2, shard_index=2), "shard_index=2"),
        (dict(batch_size=2, repeat=True, pad_last=True), "no last batch"),
    )
    def test_refusals(self, options, message):
        with self.assertRaisesRegex(ValueError, message):
            make_iterator(Source(10), **options)

    @parameterized.product(
        source=[Source(7), TextSource([3, 6, 2, 5, 3, 6, 2])],
        options=[
            dict(batch_size=4, num_shards=2),
            dict(batch_size=4, num_shards=2, repeat=True),
            dict(batch_size=4, num_shards=8, pad_last=True),
        ],
    )
    def test_all_shards_are_refused_if_one_is(self, source, options):
        task = TextTask(buckets=(4, 8)) if isinstance(source, TextSource) else None
        for shard_index in range(options["num_shards"]):
            with self.assertRaisesRegex(ValueError, "7 samples do not fill one batch of 4 in each"):
                make_iterator(source, task=task, shard_index=shard_index, **options)


if __name__ == "__main__":
    absltest.main()
