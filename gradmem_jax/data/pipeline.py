"""From a random-access source to batches, with an iterator that can be saved and restored."""

import functools
from typing import Any

import grain
import numpy as np

from gradmem_jax.checks import require, require_instance, require_integer
from gradmem_jax.data.task import Task
from gradmem_jax.losses import IGNORE

Sample = dict[str, Any]
Batch = dict[str, np.ndarray]


def make_iterator(
    source: Any,
    batch_size: int,
    *,
    task: Task | None = None,
    repeat: bool = False,
    shuffle_seed: int | None = None,
    pad_last: bool = False,
    shard_index: int = 0,
    num_shards: int = 1,
    num_threads: int = 2,
    prefetch: int = 8,
) -> grain.DatasetIterator:
    """Makes an iterator over batches; `get_state` and `set_state` keep its exact position.

    With a `task`, batches are padded to its buckets, and `index`, int32 [B], says which samples of
    the source they hold. If there are several buckets and the source knows its `context_lengths`,
    samples of one bucket come together: bucket by bucket or, shuffled, in batches of random order.
    A batch then has the same shape in every shard. Batch i of all shards together holds the samples
    of batch i without shards, of a batch size `num_shards` times as large. Samples that do not come
    by buckets are dealt out one by one: a shard may have one batch more than another, with
    `pad_last` too, unless `num_shards * batch_size` divides their number.

    Args:
        source: random-access source of dicts of arrays, with `__len__` and `__getitem__`.
        batch_size: samples in a batch.
        task: what the samples are of; None needs samples of equal shape.
        repeat: go on for ever.
        shuffle_seed: shuffle the source, differently in every repetition; None keeps its order.
        pad_last: fill up the last batch by repeating its last sample, and add `valid`, bool [B],
            false for the filling. Otherwise an incomplete last batch is dropped.
        shard_index: which shard of the source this process takes.
        num_shards: into how many shards the source is split.
        num_threads: threads that make samples; 0 makes them in the caller's.
        prefetch: batches made ahead.

    Returns:
        Iterator over dicts of arrays [B, ...].

    Raises:
        ValueError: wrong numbers, or fewer samples than one batch in each shard; with `pad_last`,
            than one sample in each. It is the same for all shards.

    Examples:
        >>> from gradmem_jax.data.kv_retrieval import KVRetrievalConfig, KVRetrievalSource
        >>> from gradmem_jax.data.pipeline import make_iterator
        >>> batches = make_iterator(KVRetrievalSource(KVRetrievalConfig(num_pairs=2)), batch_size=8)
        >>> next(batches)["context_ids"].shape  # [B, S]
        (8, 15)
    """
    require_integer("batch_size", batch_size, 1)
    require_integer("num_shards", num_shards, 1)
    require_integer("shard_index", shard_index, 0)
    require_integer("num_threads", num_threads, 0)
    require_integer("prefetch", prefetch, 1)
    require_instance("repeat", repeat, bool)
    require_instance("pad_last", pad_last, bool)
    if shuffle_seed is not None:
        require_integer("shuffle_seed", shuffle_seed, 0)
        require(shuffle_seed < 2**32, f"shuffle_seed={shuffle_seed} must be below 2**32.")
    require(
        hasattr(source, "__len__") and hasattr(source, "__getitem__"),
        f"source={source!r} is no random-access source; it needs __len__ and __getitem__, as "
        "task.source(split) has.",
    )
    require(
        task is None or hasattr(task, "context_buckets"),
        f"task={task!r} is no task; give what the source was made by.",
    )
    require(
        0 <= shard_index < num_shards,
        f"shard_index={shard_index} must be in [0, num_shards={num_shards}).",
    )
    require(not (repeat and pad_last), "repeat=True has no last batch; leave pad_last=False.")
    needed = num_shards * (1 if pad_last else batch_size)
    require(
        len(source) >= needed,
        f"{len(source)} samples do not fill one batch of {batch_size} in each of {num_shards} "
        f"shards; use a smaller batch_size or at least {needed} samples.",
    )
    if task is not None and len(task.context_buckets) > 1 and hasattr(source, "context_lengths"):
        batches = _grouped(
            source, batch_size, task, repeat, shuffle_seed, pad_last, shard_index, num_shards
        )
    else:
        dataset = grain.MapDataset.source(source)
        if task is not None:
            dataset = dataset.map_with_index(_mark)
        if shuffle_seed is not None:
            dataset = dataset.shuffle(seed=shuffle_seed)
        if repeat:
            dataset = dataset.repeat()
        if num_shards > 1:
            dataset = dataset[shard_index::num_shards]
        stack = functools.partial(
            _stack, pad_to=batch_size if pad_last else None, task=task, largest=num_shards > 1
        )
        batches = dataset.batch(batch_size, drop_remainder=not pad_last, batch_fn=stack)
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
    )
    return iter(batches.to_iter_dataset(options))


def _grouped(
    source: Any,
    batch_size: int,
    task: Task,
    repeat: bool,
    shuffle_seed: int | None,
    pad_last: bool,
    shard_index: int,
    num_shards: int,
) -> grain.MapDataset:
    """Batches of samples of one bucket; batch i is a function of i alone.

    All shards cut the same sequence of large batches, of `num_shards` shards each. Where a bucket
    ends inside a large batch, the batch takes the longer bucket.
    """
    lengths = np.asarray(source.context_lengths)
    buckets = np.array(task.context_buckets)
    bucket_of = np.searchsorted(buckets, lengths)
    size = batch_size * num_shards
    num_batches = -(-len(lengths) // size) if pad_last else len(lengths) // size

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Which samples the large batches hold, one behind the other, and the batches' order."""
        samples, turns = np.arange(len(lengths)), np.arange(num_batches)
        if shuffle_seed is not None:
            rng = np.random.default_rng([shuffle_seed, epoch])
            samples, turns = rng.permutation(samples), rng.permutation(turns)
        samples = samples[: num_batches * size]
        return samples[np.argsort(bucket_of[samples], kind="stable")], turns

    def batch(index: int, _: Any) -> Batch:
        samples, turns = order(index // num_batches)
        start = turns[index % num_batches] * size
        large = samples[start : start + size]
        bucket = int(buckets[bucket_of[large].max()])
        mine = large[shard_index::num_shards]
        rows = [_mark(int(i), source[int(i)]) for i in (mine if len(mine) else large[-1:])]
        stacked = _stack(rows, batch_size if pad_last else None, task, context_length=bucket)
        if not len(mine):
            stacked["valid"][:] = False
        return stacked

    dataset = grain.MapDataset.range(num_batches)
    return (dataset.repeat() if repeat else dataset).map_with_index(batch)


def _mark(index: int, sample: Sample) -> Sample:
    return sample | {"index": np.int32(index)}


def _stack(
    rows: list[Sample],
    pad_to: int | None,
    task: Task | None,
    *,
    context_length: int | None = None,
    largest: bool = False,
) -> Batch:
    """Stacks samples to a batch of `pad_to`, their arrays padded to a task's buckets."""
    rows = list(rows)
    if task is not None:
        rows = _pad_rows(rows, task, context_length, largest)
    filled = rows + [rows[-1]] * ((pad_to or len(rows)) - len(rows))
    batch = {name: np.stack([row[name] for row in filled]) for name in rows[0]}
    if pad_to is not None:
        batch["valid"] = np.arange(pad_to) < len(rows)
    return batch


def _pad_rows(
    rows: list[Sample], task: Task, context_length: int | None, largest: bool
) -> list[Sample]:
    def bucket(name: str, buckets: tuple[int, ...]) -> int:
        length = max(row[name].shape[-1] for row in rows)
        fitting = [size for size in buckets if size >= length]
        require(
            bool(fitting), f"{name} of {length} tokens do not fit the task's buckets {buckets}."
        )
        return buckets[-1] if largest else fitting[0]

    context = context_length or bucket("context_ids", task.context_buckets)
    query = bucket("query_ids", task.query_buckets)
    filling: dict[str, tuple[int, Any]] = {
        "context_ids": (context, task.pad_id),
        "context_kinds": (context, 0),
        "query_ids": (query, task.pad_id),
        "labels": (query, IGNORE),
        "value_mask": (query, False),
    }
    return [
        {
            name: _pad(value, *filling[name]) if name in filling else value
            for name, value in row.items()
        }
        for row in rows
    ]


def _pad(array: np.ndarray, length: int, filling: Any) -> np.ndarray:
    widths = [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])]
    return np.pad(array, widths, constant_values=filling)
