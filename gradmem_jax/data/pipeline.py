"""From a random-access source to batches, with an iterator that can be saved and restored."""

from typing import Any

import grain
import numpy as np

from gradmem_jax.config import require, require_integer


def make_iterator(
    source: Any,
    batch_size: int,
    *,
    repeat: bool = False,
    shuffle_seed: int | None = None,
    pad_last: bool = False,
    shard_index: int = 0,
    num_shards: int = 1,
    num_threads: int = 2,
    prefetch: int = 8,
) -> grain.DatasetIterator:
    """Makes an iterator over batches; `get_state` and `set_state` keep its exact position.

    Args:
        source: random-access source of dicts of arrays, with `__len__` and `__getitem__`.
        batch_size: samples in a batch.
        repeat: go on for ever.
        shuffle_seed: shuffle the source, differently in every repetition; None keeps its order.
        pad_last: fill up the last batch by repeating its last sample, and add `valid`, bool [B],
            false for the filling. Otherwise an incomplete last batch is dropped.
        shard_index: which shard of the source this process takes.
        num_shards: into how many shards the source is split.
        num_threads: threads that make samples; 0 makes them in the caller's.
        prefetch: samples made ahead.

    Returns:
        Iterator over dicts of arrays [B, ...].

    Raises:
        ValueError: wrong numbers, or fewer samples than one batch.
    """
    require_integer("batch_size", batch_size, 1)
    require_integer("num_shards", num_shards, 1)
    require(
        0 <= shard_index < num_shards,
        f"shard_index={shard_index} must be in [0, num_shards={num_shards}).",
    )
    require(not (repeat and pad_last), "repeat=True has no last batch; leave pad_last=False.")
    dataset = grain.MapDataset.source(source)[shard_index::num_shards]
    require(
        len(dataset) >= (1 if pad_last else batch_size),
        f"a shard of {len(dataset)} samples does not fill one batch of {batch_size}; use a smaller "
        "batch_size or more samples.",
    )
    if shuffle_seed is not None:
        dataset = dataset.shuffle(seed=shuffle_seed)
    if repeat:
        dataset = dataset.repeat()
    if pad_last:
        batches = dataset.batch(
            batch_size, drop_remainder=False, batch_fn=lambda rows: _stack(rows, batch_size)
        )
    else:
        batches = dataset.batch(batch_size, drop_remainder=True, batch_fn=_stack)
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
    )
    return iter(batches.to_iter_dataset(options))


def _stack(rows: list[dict[str, Any]], pad_to: int | None = None) -> dict[str, np.ndarray]:
    filled = list(rows) + [rows[-1]] * ((pad_to or len(rows)) - len(rows))
    batch = {name: np.stack([row[name] for row in filled]) for name in rows[0]}
    if pad_to is not None:
        batch["valid"] = np.arange(pad_to) < len(rows)
    return batch
