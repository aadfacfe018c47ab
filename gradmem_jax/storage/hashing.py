"""The hash that marks what belongs together on disk."""

import hashlib
from collections.abc import Mapping

import numpy as np


def hash_bytes(*parts: bytes | memoryview) -> str:
    """Hash of some bytes, as text."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def hash_arrays(description: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of a text and of names, shapes, dtypes and values of arrays."""
    parts: list[bytes | memoryview] = [description.encode()]
    for name, array in sorted(arrays.items()):
        values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        parts += [f"{name} {array.dtype} {array.shape}".encode(), values.data]
    return hash_bytes(*parts)
