"""How a checkpoint names and lays out the tensors of a language model, for reading and writing.

A layout is a table with one entry for each tensor of the checkpoint:

    "model.layers.{}.self_attn.q_proj.weight": ("layers/attention/query/kernel", "hk d -> d h k")

their name, with {} for the number of the layer; the path of the parameter here; and their axes and
ours. A letter is an axis whose size `axis_sizes` knows; letters together are one axis that holds
them all, the last one running fastest. A `*` in our path stands for query, key and value, which
they keep in one tensor: the first of our axes, "c", tells them apart.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gradmem_jax.array_checks import check_params
from gradmem_jax.checks import require
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.mamba import MambaConfig
from gradmem_jax.lm.mamba2 import Mamba2Config
from gradmem_jax.lm.transformer import TransformerConfig
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer
from gradmem_jax.trees import Params

Layout = Mapping[str, tuple[str, str]]
_PART = 2**16  # numbers that fit into a processor's cache

_MOST_LAYERS_NAMED = 1000  # of a checkpoint that lacks their tensors


class StoredTensor(NamedTuple):
    """A tensor that is read when it is needed.

    Attributes:
        shape: its shape.
        read: returns it.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class StoredModel(NamedTuple):
    """What files say of a model before its weights are read.

    Attributes:
        config: the model.
        layout: how its tensors are named and laid out.
        tensors: its tensors by name.
        read_tokenizer: returns its tokenizer, or None if the files have none.
    """

    config: LMConfig
    layout: Layout
    tensors: Mapping[str, StoredTensor]
    read_tokenizer: Callable[[], TextTokenizer | None]


def axis_sizes(config: LMConfig) -> dict[str, int]:
    """Sizes of the axes that layouts name."""
    c = config
    sizes = {"v": c.vocab_size, "d": c.width, "n": c.max_positions, "o": 1, "t": 2, "c": 3}
    if isinstance(c, TransformerConfig):
        sizes |= {"h": c.num_heads, "g": c.kv_heads, "k": c.head_size, "f": c.mlp_size}
        sizes["p"] = c.head_size // 2
    if isinstance(c, MambaConfig):
        sizes |= {"e": c.channels, "s": c.state_size, "w": c.conv_size, "r": c.time_step_rank}
        sizes["x"] = c.time_step_rank + 2 * c.state_size
    if isinstance(c, Mamba2Config):
        mixed = c.channels + 2 * c.state_size
        sizes |= {"e": c.channels, "m": mixed, "w": c.conv_size, "h": c.num_heads}
        sizes["x"] = c.channels + mixed + c.num_heads
    return sizes


def to_params(tensors: Mapping[str, StoredTensor], layout: Layout, config: LMConfig) -> Params:
    """Reads a language model's parameters, one tensor after the other.

    Args:
        tensors: the checkpoint's tensors by name.
        layout: how they are named and laid out.
        config: the model.

    Returns:
        Nested dict of numpy arrays in `config.param_dtype`.

    Raises:
        ValueError: tensors are missing, unexpected or have other shapes than `config` says; the
            message names them all. A tensor has numbers that are not finite, or not in
            `config.param_dtype`.
    """
    require_layers(tensors, config)
    sizes, entries = axis_sizes(config), _entries(layout, config)
    shapes = tensor_shapes(layout, config)
    problems = [f"there is no tensor {name!r}" for name in shapes if name not in tensors]
    problems += [
        f"{name!r} has shape {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    tied = (
        {name for name, (ours, _) in layout.items() if ours == "head"} if config.tied_head else ()
    )
    unexpected = tensors.keys() - shapes.keys() - {*tied}
    problems += [f"{name!r} is unexpected" for name in sorted(unexpected)]
    require(not problems, f"the checkpoint does not fit its configuration: {'; '.join(problems)}.")
    dtype = jnp.dtype(config.param_dtype)
    flat: dict[str, np.ndarray] = {}
    for theirs, (ours, pattern) in entries.items():
        parts = [
            _rounded(name, _rearrange(_read(name, tensors[name]), pattern, sizes), dtype)
            for name in _names(theirs, config)
        ]
        for j, path in enumerate(_paths(ours)):
            leaves = [x[j] if "*" in ours else x for x in parts]
            if config.scan_layers and "{}" in theirs:
                flat[path] = np.stack(leaves)
            else:
                flat |= dict(zip(_layer_paths(path, config), leaves, strict=True))
    return unflatten_dict(flat, sep="/")


def require_layers(tensors: Mapping[str, StoredTensor], config: LMConfig) -> None:
    """Raises ValueError if there are far fewer tensors than layers."""
    require(
        config.num_layers <= max(len(tensors), _MOST_LAYERS_NAMED),
        f"the checkpoint has {len(tensors)} tensors, too few for the {config.num_layers} layers of "
        "its configuration.",
    )


def first_positions(stored: StoredModel, num_positions: int) -> dict[str, StoredTensor]:
    """Returns the tensors of a model, learned positions cut to the first `num_positions`."""
    tensors = dict(stored.tensors)
    sizes = axis_sizes(stored.config)
    for name, (_, pattern) in stored.layout.items():
        before = pattern.split("->")[0]
        whole = _shape(before, sizes)
        if before.split()[0] == "n" and name in tensors and tensors[name].shape == whole:
            shape = (min(num_positions, whole[0]), *whole[1:])
            read = functools.partial(some_rows, tensors[name], slice(num_positions))
            tensors[name] = StoredTensor(shape, read)
    return tensors


def some_rows(tensor: StoredTensor, rows: slice) -> np.ndarray:
    """Reads a part of a tensor's first axis."""
    return tensor.read()[rows]


def _read(name: str, tensor: StoredTensor) -> np.ndarray:
    x = tensor.read()
    require(
        jnp.issubdtype(x.dtype, jnp.floating),
        f"the tensor {name!r} is of type {x.dtype}; weights must be floating-point numbers.",
    )
    return x


def _rounded(name: str, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in a type; refuses what is not finite there."""
    with np.errstate(over="ignore"):
        rounded = np.array(x, dtype, order="C")
    if not _is_finite(rounded):
        require(np.isfinite(x).all(), f"the tensor {name!r} is not finite; get the file again.")
        raise ValueError(
            f"the tensor {name!r} has {float(np.abs(x).max()):.4g}, which is too large for "
            f"param_dtype={str(dtype)!r}; choose a wider one."
        )
    return rounded


def _is_finite(x: np.ndarray) -> bool:
    """Whether all numbers are finite; of 16 bits by their exponents, which takes less time."""
    if x.dtype.itemsize != 2:
        return bool(np.isfinite(x).all())
    ones = np.array(np.inf, x.dtype).view(np.uint16)
    bits = x.reshape(-1).view(np.uint16)
    parts = (bits[i : i + _PART] for i in range(0, bits.size, _PART))
    return all(np.max(part & ones, initial=0) != ones for part in parts)


def tensor_shapes(layout: Layout, config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a model by their names, in the order of the layout."""
    sizes = axis_sizes(config)
    return {
        name: _shape(pattern.split("->")[0], sizes)
        for theirs, (_, pattern) in _entries(layout, config).items()
        for name in _names(theirs, config)
    }


def to_tensors(params: Params, layout: Layout, config: LMConfig) -> dict[str, np.ndarray]:
    """Lays parameters out as a checkpoint has them: the inverse of `to_params`.

    Args:
        params: parameters of the language model, on any device.
        layout: how the checkpoint names and lays out its tensors.
        config: the model.

    Raises:
        ValueError: the parameters are not those of `config`; the message names what differs.
    """
    sizes, entries = axis_sizes(config), _entries(layout, config)
    check_params(params, _param_shapes(entries, config, sizes))
    flat = flatten_dict(params, sep="/")
    tensors = {}
    for theirs, (ours, pattern) in entries.items():
        back = "->".join(reversed(pattern.split("->")))
        for i, name in enumerate(_names(theirs, config)):
            leaves = []
            for path in _paths(ours):
                stacked = config.scan_layers and "{}" in theirs
                leaves.append(flat[path][i] if stacked else flat[_layer_paths(path, config)[i]])
            x = np.stack(leaves) if "*" in ours else np.asarray(leaves[0])
            tensors[name] = np.ascontiguousarray(_rearrange(x, back, sizes))
    return tensors


def _entries(layout: Layout, config: LMConfig) -> Layout:
    """The part of a layout whose parameters the model has."""
    return {name: entry for name, entry in layout.items() if config.has_param(entry[0])}


def _names(theirs: str, config: LMConfig) -> list[str]:
    return [theirs.format(i) for i in range(config.num_layers)] if "{}" in theirs else [theirs]


def _paths(ours: str) -> list[str]:
    return (
        [ours.replace("*", part) for part in ("query", "key", "value")] if "*" in ours else [ours]
    )


def _layer_paths(path: str, config: LMConfig) -> list[str]:
    """Where a parameter of each layer is, when the layers are not stacked."""
    if not path.startswith("layers/"):
        return [path]
    return [path.replace("layers", f"layers_{i}", 1) for i in range(config.num_layers)]


def _axes(side: str) -> Iterator[tuple[str, ...]]:
    return (tuple(axis) for axis in side.split())


def _shape(side: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in _axes(side))


def _rearrange(x: np.ndarray, pattern: str, sizes: Mapping[str, int]) -> np.ndarray:
    """Moves axes as a pattern such as "hk d -> d h k" says."""
    before, after = pattern.split("->")
    letters = [letter for axis in _axes(before) for letter in axis]
    x = x.reshape([sizes[letter] for letter in letters])
    x = x.transpose([letters.index(letter) for axis in _axes(after) for letter in axis])
    return x.reshape(_shape(after, sizes))


def _param_shapes(entries: Layout, config: LMConfig, sizes: Mapping[str, int]) -> Params:
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    for theirs, (ours, pattern) in entries.items():
        shape = _shape(pattern.split("->")[1], sizes)
        shape = shape[1:] if "*" in ours else shape
        for path in _paths(ours):
            stacked = config.scan_layers and "{}" in theirs
            paths = [path] if stacked else _layer_paths(path, config)
            full_shape = (config.num_layers, *shape) if stacked else shape
            leaf = jax.ShapeDtypeStruct(full_shape, config.param_dtype)
            shapes |= dict.fromkeys(paths, leaf)
    return unflatten_dict(shapes, sep="/")
