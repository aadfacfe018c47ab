"""What the kernels take, counted from shapes."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from gradmem_jax.lm.fused.passes import Pass

Machine = Literal["tpu", "gpu"]


class Cost(NamedTuple):
    """What a kernel takes.

    Attributes:
        flops: operations of matrix products.
        moved: bytes of all blocks that it reads, and of its results.
        read_again: of them, those that it has read before.
    """

    flops: float = 0
    moved: float = 0
    read_again: float = 0

    def __add__(self, other: Any) -> "Cost":
        return Cost(*(x + y for x, y in zip(self, other, strict=True)))


def cost_of(kernel: Pass, queries: Sequence[Any], keys: Sequence[Any], block: int) -> Cost:
    """What `kernels.walk` takes, of arrays or their shapes."""
    batch, groups, length, width = queries[0].shape
    blocks = -(-length // block)
    pairs = batch * groups * blocks * (blocks + 1) // 2
    flops = 2.0 * kernel.products * pairs * block**2 * width
    staying, passing = (queries, keys) if kernel.over_keys else (keys, queries)
    in_pairs = sum(pairs * block * x.shape[-1] * x.dtype.itemsize for x in passing)
    once, left = (sum(x.size * x.dtype.itemsize for x in arrays) for arrays in (passing, staying))
    results = 4.0 * (length * batch) * (groups if kernel.over_keys else 2) * width
    return Cost(flops, in_pairs + left + results, max(in_pairs - once, 0))
