"""Tensors of a checkpoint that stand for several: fused projections, tied weights."""

import functools
from collections.abc import Iterable, Mapping

import numpy as np

from gradmem_jax.checks import require
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.pretrained.tensor_layout import (
    Layout,
    StoredTensor,
    require_layers,
    some_rows,
    tensor_shapes,
)

Fused = Mapping[str, tuple[str, ...]]  # part of a tensor's name to those of what it holds, in order


def embedding_of_head(
    tensors: Mapping[str, StoredTensor], layout: Layout, config: LMConfig
) -> dict[str, StoredTensor]:
    """Tensors with an embedding, where it is the head and kept under the head's name only."""
    names = {ours: theirs for theirs, (ours, _) in layout.items()}
    embedding, head = names["embedding"], names["head"]
    if not config.tied_head or embedding in tensors or head not in tensors:
        return dict(tensors)
    return {embedding if name == head else name: x for name, x in tensors.items()}


def split_fused(
    tensors: Mapping[str, StoredTensor], fused: Fused, layout: Layout, config: LMConfig
) -> dict[str, StoredTensor]:
    """Tensors with those that hold several of the layout's taken apart, by their first axis.

    Raises:
        ValueError: one of them does not have the shape of its parts together.
    """
    require_layers(tensors, config)
    shapes, found = tensor_shapes(layout, config), dict(tensors)
    for whole, parts in _fused_names(fused, shapes):
        if whole not in found:
            continue
        tensor = found.pop(whole)
        wanted = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
        require(
            tensor.shape == wanted,
            f"the checkpoint does not fit its configuration: {whole!r} has shape {tensor.shape} "
            f"instead of {wanted}.",
        )
        start = 0
        for part in parts:
            rows = slice(start, start + shapes[part][0])
            found[part] = StoredTensor(shapes[part], functools.partial(some_rows, tensor, rows))
            start = rows.stop
    return found


def join_fused(
    tensors: Mapping[str, np.ndarray], fused: Fused, layout: Layout, config: LMConfig
) -> dict[str, np.ndarray]:
    """The inverse of `split_fused`."""
    joined = dict(tensors)
    for whole, parts in _fused_names(fused, tensor_shapes(layout, config)):
        joined[whole] = np.concatenate([joined.pop(part) for part in parts])
    return joined


def _fused_names(fused: Fused, names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Names of fused tensors, and of the parts of each in order."""
    return [
        (name.replace(parts[0], whole), [name.replace(parts[0], part) for part in parts])
        for whole, parts in fused.items()
        for name in names
        if parts[0] in name
    ]
