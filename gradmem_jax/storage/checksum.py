"""A checksum of a tree of arrays, computed where they are, however they are split over devices."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.trees import named_leaves

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def checksum(tree: Any) -> int:
    """A number below 2**32 that depends on every bit, and on which array and place it is in.

    It is the sum, modulo 2**32, of a hash of each element's bits, its place in its array, and the
    array's name and shape. One element that changes is always found; anything else, such as rows
    that have changed places, passes in one of 2**32 cases. It is no defence against somebody who
    means to deceive: he can write another checksum.
    """
    seeds = {
        name: zlib.crc32(f"{name} {leaf.dtype} {leaf.shape}".encode())
        for name, leaf in named_leaves(tree).items()
    }
    sums = [_sum(leaf, jnp.uint32(seeds[name])) for name, leaf in named_leaves(tree).items()]
    return sum(int(part.addressable_data(0)) for part in sums) % 2**32


@jax.jit
def _sum(x: jax.Array, seed: jax.Array) -> jax.Array:
    """The sum of the hashes of an array; compiled once for each shape and not for each array."""
    bits = unsigned(x).astype(jnp.uint32)
    place = jnp.uint32(0)
    for axis, size in enumerate(bits.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place * jnp.uint32(size % 2**32) + along
    return _mix(_mix(bits + seed) + place).sum(dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """The end of MurmurHash3: one to one, and every bit of x changes half of the bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def unsigned(x: jax.Array) -> jax.Array:
    """The bits of an array as unsigned numbers; those of 64 bits are two on a last axis."""
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    return jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize])


@jax.jit
def _add_bits(tree: Any) -> jax.Array:
    parts = (unsigned(x).sum(dtype=jnp.uint32) for x in jax.tree.leaves(tree))
    return sum(parts, jnp.uint32(0))


def bit_sum(tree: Any) -> int:
    """The sum of a tree's bits as unsigned numbers: the checksum of checkpoints until 2026-11."""
    return int(_add_bits(tree).addressable_data(0))
