"""Batches: order, shards, padding, exact positions."""

import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.data.pipeline import make_iterator


class Source:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return {"i": np.array(i)}


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

    @parameterized.parameters(
        (dict(batch_size=0), "batch_size=0"),
        (dict(batch_size=11), "does not fill one batch of 11"),
        (dict(batch_size=6, num_shards=2), "shard of 5 samples"),
        (dict(batch_size=2, num_shards=2, shard_index=2), "shard_index=2"),
        (dict(batch_size=2, repeat=True, pad_last=True), "no last batch"),
    )
    def test_refusals(self, options, message):
        with self.assertRaisesRegex(ValueError, message):
            make_iterator(Source(10), **options)


if __name__ == "__main__":
    absltest.main()
