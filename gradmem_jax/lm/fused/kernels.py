"""Walks over the blocks of causal attention, as Pallas kernels of TPU and of GPU.

On a TPU the walk is the last axes of the grid, which run in order, and sums stay in vector memory.
On a GPU each program of the grid walks in a loop of its own, and sums stay in registers. Blocks
behind the diagonal are not computed, and on a TPU not fetched.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from gradmem_jax.lm.fused.cost import Machine, cost_of
from gradmem_jax.lm.fused.passes import Arrays, Pass

_LANES = 128


class _Walk(NamedTuple):
    """A pass and what it takes; of queries [N, G, S, D] or [N, G, 1, S], of keys [N, S, D].

    On a TPU a last axis of less than 128 is filled up to it, so if D is less it stands before S.
    """

    kernel: Pass
    queries: Arrays
    keys: Arrays
    block: int
    is_turned: bool

    @property
    def results(self) -> tuple[Any, ...]:
        """Shapes and dtypes of the results."""
        tiles = jax.eval_shape(self.kernel.finish, self.sums, self._staying_tiles)
        front = self.queries[0].shape[:2] if self.kernel.over_keys else self.queries[0].shape[:1]

        def result(tile: Any) -> jax.ShapeDtypeStruct:
            width = tile.shape[1]
            is_flat = self.is_turned or width == 1
            shape = (width, self.length) if is_flat else (self.length, width)
            return _shape_like(self.queries[0], (*front, *shape), tile.dtype)

        return tuple(map(result, tiles))

    @property
    def sums(self) -> tuple[Any, ...]:
        """Shapes and dtypes of the sums of a block."""
        return jax.eval_shape(self.kernel.start, self._staying_tiles)

    @property
    def length(self) -> int:
        """S."""
        return self.queries[0].shape[-1 if self.is_turned else -2]

    def is_flat(self, x: Any) -> bool:
        """Whether S is the last axis of an array."""
        return self.is_turned or _is_row(x)

    def load(self, refs: Sequence[Any]) -> Arrays:
        """Blocks as a pass takes them."""
        return tuple(
            ref[0, :][:, None]
            if ref.shape[0] == 1
            else jnp.swapaxes(ref[...], 0, 1)
            if self.is_turned
            else ref[...]
            for ref in refs
        )

    def store(self, refs: Sequence[Any], tiles: Arrays) -> None:
        """Writes blocks of results."""
        for ref, x in zip(refs, tiles, strict=True):
            if ref.shape[0] == 1:
                ref[0, :] = x[:, 0]
            else:
                ref[...] = jnp.swapaxes(x, 0, 1) if self.is_turned else x

    @property
    def _staying_tiles(self) -> tuple[Any, ...]:
        staying = self.queries if self.kernel.over_keys else self.keys
        return tuple(
            jax.ShapeDtypeStruct((self.block, x.shape[-2 if self.is_flat(x) else -1]), x.dtype)
            for x in staying
        )


def walk(
    kernel: Pass,
    queries: Sequence[jax.Array],
    keys: Sequence[jax.Array],
    *,
    machine: Machine,
    block: int,
    name: str,
    interpret: bool = False,
) -> Arrays:
    """Runs a pass over all blocks.

    Args:
        kernel: the pass.
        queries: what it takes of queries, [N, G, S, D] or [N, G, S, 1]; D is 2 or more.
        keys: what it takes of keys, [N, S, D].
        machine: for what machine.
        block: queries, and keys, of a block.
        name: of the kernel, in profiles.
        interpret: whether it is interpreted, on any machine.

    Returns:
        The pass's results, of queries or of keys, float32 at least.
    """
    length, width = queries[0].shape[-2:]
    widened = max(pl.next_power_of_2(width), 16) if machine == "gpu" else width  # Triton's products

    def padded(x: jax.Array) -> jax.Array:
        more = (-length % block, widened - width if x.shape[-1] > 1 else 0)
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, n) for n in more])
        return jnp.swapaxes(x, -1, -2) if is_turned or x.shape[-1] == 1 else x

    is_turned = machine == "tpu" and width < _LANES
    it = _Walk(kernel, tuple(map(padded, queries)), tuple(map(padded, keys)), block, is_turned)
    make = _on_tpu if machine == "tpu" else _on_gpu
    flops, moved, _ = map(int, cost_of(kernel, queries, keys, block))
    cost = pl.CostEstimate(flops=flops, bytes_accessed=moved, transcendentals=0)
    call = make(it, name=name, interpret=interpret, cost_estimate=cost)
    found = call(*it.queries, *it.keys)
    return tuple(
        (jnp.swapaxes(x, -1, -2) if it.is_flat(x) else x)[..., :length, :width] for x in found
    )


def _on_tpu(walk: _Walk, **options: Any) -> Any:
    kernel, block = walk.kernel, walk.block
    batch, groups = walk.queries[0].shape[:2]
    blocks = walk.length // block

    def spec(x: Any) -> pl.BlockSpec:
        def place(*ids: Any) -> tuple[Any, ...]:
            """Of the block that is needed next, where one is hidden."""
            if kernel.over_keys:
                n, g, i, j = ids
                j = jnp.minimum(j, i)
            else:
                n, j, g, i = ids
                i = jnp.maximum(i, j)
            front, along = ((n,), j) if x.ndim == 3 else ((n, g), i)
            return (*front, 0, along) if walk.is_flat(x) else (*front, along, 0)

        tile = (x.shape[-2], block) if walk.is_flat(x) else (block, x.shape[-1])
        return pl.BlockSpec((*(None,) * (x.ndim - 2), *tile), place)

    def body(*refs: Any) -> None:
        query_refs, key_refs, result_refs, sum_refs = _split(refs, walk)
        if kernel.over_keys:
            i, j = pl.program_id(2), pl.program_id(3)
            staying_refs, is_first, is_last = query_refs, j == 0, j == blocks - 1
        else:
            j, g, i = (pl.program_id(axis) for axis in (1, 2, 3))
            staying_refs, is_first = key_refs, (g == 0) & (i == 0)
            is_last = (g == groups - 1) & (i == blocks - 1)

        @pl.when(is_first)
        def _() -> None:
            for ref, x in zip(sum_refs, kernel.start(walk.load(staying_refs)), strict=True):
                ref[...] = x

        @pl.when(j <= i)
        def _() -> None:
            sums = tuple(ref[...] for ref in sum_refs)
            seen = _seen(i, j, block)
            sums = kernel.add(sums, walk.load(query_refs), walk.load(key_refs), seen)
            for ref, x in zip(sum_refs, sums, strict=True):
                ref[...] = x

        @pl.when(is_last)
        def _() -> None:
            sums = tuple(ref[...] for ref in sum_refs)
            walk.store(result_refs, kernel.finish(sums, walk.load(staying_refs)))

    steps = (groups, blocks, blocks) if kernel.over_keys else (blocks, groups, blocks)
    semantics = pltpu.GridDimensionSemantics
    order = [semantics.PARALLEL] * 2 + [semantics.ARBITRARY] * 2
    if kernel.over_keys:
        order[2] = semantics.PARALLEL
    return pl.pallas_call(
        body,
        grid=(batch, *steps),
        in_specs=[spec(x) for x in (*walk.queries, *walk.keys)],
        out_specs=[spec(x) for x in walk.results],
        out_shape=walk.results,
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype) for x in walk.sums],
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
        **options,
    )


def _on_gpu(walk: _Walk, **options: Any) -> Any:
    kernel, block = walk.kernel, walk.block
    batch, groups = walk.queries[0].shape[:2]
    blocks = walk.length // block

    def spec(x: Any) -> pl.BlockSpec:
        """Queries of all groups, or of one, and all blocks of what goes by."""
        of_queries = x.ndim == 4
        stays = of_queries == kernel.over_keys
        axis = x.ndim - 1 if _is_row(x) else x.ndim - 2
        shape: list[int | None] = [None, *x.shape[1:]]
        if stays:
            shape[axis] = block
        if of_queries and kernel.over_keys:
            shape[1] = None

        def place(n: Any, *ids: Any) -> tuple[Any, ...]:
            where: list[Any] = [n] + [0] * (x.ndim - 1)
            if of_queries and kernel.over_keys:
                where[1] = ids[0]
            if stays:
                where[axis] = ids[-1]
            return tuple(where)

        return pl.BlockSpec(tuple(shape), place)

    def over_keys(*refs: Any) -> None:
        query_refs, key_refs, result_refs, _ = _split(refs, walk)
        i = pl.program_id(2)
        queries = walk.load(query_refs)

        def add(j: Any, sums: Arrays) -> Arrays:
            keys = tuple(ref[pl.ds(j * block, block), :] for ref in key_refs)
            return kernel.add(sums, queries, keys, _seen(i, j, block))

        sums = jax.lax.fori_loop(0, i + 1, add, kernel.start(queries))
        walk.store(result_refs, kernel.finish(sums, queries))

    def over_queries(*refs: Any) -> None:
        query_refs, key_refs, result_refs, _ = _split(refs, walk)
        j = pl.program_id(1)
        keys = walk.load(key_refs)
        sums = kernel.start(keys)
        for g in range(groups):

            def add(i: Any, sums: Arrays, g: int = g) -> Arrays:
                rows = pl.ds(i * block, block)
                queries = tuple(
                    ref[g, 0, rows][:, None] if is_row else ref[g, rows, :]
                    for ref, is_row in zip(query_refs, are_rows, strict=True)
                )
                return kernel.add(sums, queries, keys, _seen(i, j, block))

            sums = jax.lax.fori_loop(j, blocks, add, sums)
        walk.store(result_refs, kernel.finish(sums, keys))

    are_rows = [_is_row(x) for x in walk.queries]
    return pl.pallas_call(
        over_keys if kernel.over_keys else over_queries,
        grid=(batch, groups, blocks) if kernel.over_keys else (batch, blocks),
        in_specs=[spec(x) for x in (*walk.queries, *walk.keys)],
        out_specs=[spec(x) for x in walk.results],
        out_shape=walk.results,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        **options,
    )


def _is_row(x: Any) -> bool:
    """Whether this is one number a query, [..., 1, S]."""
    return x.ndim > 3 and x.shape[-2] == 1


def _seen(i: Any, j: Any, block: int) -> jax.Array:
    """Which keys of block j a query of block i sees."""
    rows = i * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), 0)
    return j * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), 1) <= rows


def _split(refs: Sequence[Any], walk: _Walk) -> list[Sequence[Any]]:
    """References of queries, of keys, of results and of sums."""
    counts = [len(walk.queries), len(walk.keys), len(walk.results)]
    ends = [sum(counts[: k + 1]) for k in range(3)]
    return [refs[start:end] for start, end in zip([0, *ends], [*ends, len(refs)], strict=True)]


def _shape_like(x: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Of an array that varies over the axes of a `jax.shard_map` as `x` does."""
    varying = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)
