"""Layouts on many devices: a mesh with named axes, and where each parameter lies on it.

A batch is split over the axes `data` and `fsdp`. Parameters and optimizer state are split over
`fsdp`, and gathered once a step however many WRITE steps there are, or by each layer when it runs
(`TransformerConfig.gather`); attention heads, MLP and
vocabulary are split over `tensor`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gradmem_jax.checks import check_fields, require
from gradmem_jax.parallel.compiling import NO_SPLITTING, REDUCE_IN_LOOPS, compiler_options
from gradmem_jax.trees import PyTree, path_name

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axes of parameters by the end of their path, without the leading axis of stacked layers.
# The first line with the right number of axes holds; a parameter without one is replicated.
PARAM_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(^|/)embedding", ("vocab", "embed")),
    (r"(^|/)position_embedding", (None, "embed")),
    (r"(^|/)(write_)?head", ("embed", "vocab")),
    (r"/(query|key|value)/kernel", ("embed", "heads", None)),
    (r"/(query|key|value)/bias", ("heads", None)),
    (r"/output/kernel", ("heads", None, "embed")),
    (r"/(gate|up)/kernel", ("embed", "mlp")),
    (r"/(gate|up)/bias", ("mlp",)),
    (r"/down/kernel", ("mlp", "embed")),
    (r"/(output|out_proj)/kernel", (None, "embed")),
    (r"/dt_proj/kernel", (None, "embed")),
    (r"/kernel", ("embed", None)),
    (r"/inner_weights", ("heads", "embed", None)),
    (r"/fast_(gate|up|out)", (None, "embed", None)),
)
LAYERS = r"(^|/)lm/layers(_\d+)?/"  # paths of parameters that layers may gather themselves
MESH_AXES = {"embed": "fsdp", "vocab": "tensor", "heads": "tensor", "mlp": "tensor"}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged; one of the numbers may be -1, all devices that are left.

    Attributes:
        data: copies of the parameters, each with its own part of the batch.
        fsdp: parts of parameters and optimizer state; each has its own part of the batch too.
        tensor: parts of attention heads, MLP and vocabulary that work on the same samples.

    Examples:
        >>> from gradmem_jax.parallel.sharding import MeshConfig
        >>> MeshConfig(fsdp=4, tensor=2)  # data: all devices that are left
        MeshConfig(data=-1, fsdp=4, tensor=2)
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in AXES:
            size = getattr(self, name)
            require(
                size == -1 or size >= 1,
                f"mesh.{name}={size} must be a number of devices, or -1 for all that are left.",
            )
        left = [name for name in AXES if getattr(self, name) == -1]
        require(
            len(left) < 2,
            f"mesh.{' and mesh.'.join(left)} are -1; only one axis can take what is left.",
        )


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices, by default all of all processes, as (data, fsdp, tensor).

    Raises:
        ValueError: their number is not the product of the axes.

    Examples:
        >>> from gradmem_jax.parallel.sharding import MeshConfig, make_mesh
        >>> dict(make_mesh(MeshConfig(data=1), jax.devices()[:1]).shape)
        {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else devices
    shape = {name: getattr(config, name) for name in AXES}
    known = 1
    for size in shape.values():
        known *= max(size, 1)
    text = " x ".join(f"{name}={size}" for name, size in shape.items())
    open_axes = [name for name, size in shape.items() if size == -1]
    if open_axes:
        require(
            len(devices) % known == 0,
            f"mesh {text}: {len(devices)} devices are no multiple of {known}; choose axes whose "
            "product divides them.",
        )
        shape[open_axes[0]] = len(devices) // known
    else:
        require(
            known == len(devices),
            f"mesh {text} takes {known} devices, there are {len(devices)}; set one axis to -1.",
        )
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(shape.values()), AXES, axis_types=types, devices=devices)


def logical_axes(path: str, num_axes: int) -> tuple[str | None, ...]:
    """Names of the axes of a parameter, or of its optimizer state; None where they have none.

    Args:
        path: such as "lm/layers_0/attention/query/kernel", perhaps behind other names.
        num_axes: how many axes it has.
    """
    stacked = int("/layers/" in f"/{path}")
    for pattern, axes in PARAM_AXES:
        if len(axes) == num_axes - stacked and re.search(f"{pattern}$", path):
            return (None,) * stacked + axes
    return (None,) * num_axes


def partition(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns the PartitionSpec of every array of a tree of parameters.

    Optimizer state, or a whole `TrainState`, is such a tree too: its paths end like those of the
    parameters. An axis that the devices do not divide stays whole; `undivided` says which.
    """

    def splits(axis: str | None, size: int) -> bool:
        return bool(axis) and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0

    def spec(path: Any, x: Any) -> PartitionSpec:
        names = logical_axes(path_name(path), x.ndim)
        axes = [MESH_AXES.get(name or "") for name in names]
        fitting = [a if splits(a, size) else None for a, size in zip(axes, x.shape, strict=True)]
        return PartitionSpec(*fitting)

    return jax.tree.map_with_path(spec, tree)


def undivided(tree: PyTree, mesh: Mesh) -> list[str]:
    """Says which axes of parameters stay whole because the devices do not divide them."""
    found = []
    for path, x in jax.tree.leaves_with_path(tree):
        for name, size in zip(logical_axes(path_name(path), x.ndim), x.shape, strict=True):
            axis = MESH_AXES.get(name or "")
            if axis and size % mesh.shape[axis]:
                found.append(f"{name} of {path_name(path)}, {size} by {axis}={mesh.shape[axis]}")
    return found


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns the NamedSharding of every array of parameters, optimizer state or `TrainState`.

    Examples:
        >>> from gradmem_jax.parallel.sharding import MeshConfig, make_mesh, shardings
        >>> mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        >>> shardings(params, mesh)["initial_memory"].spec
        P(None, None)
    """
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), partition(tree, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays [B, ...].

    Examples:
        >>> from gradmem_jax.parallel.sharding import MeshConfig, batch_sharding, make_mesh
        >>> mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        >>> jax.device_put(context_ids, batch_sharding(mesh)).shape
        (2, 5)
    """
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def mesh_compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """Options of `jax.jit` for programs on a mesh.

    Several CPU devices stand for cores, so their programs need not be split over threads; XLA's
    elementwise kernels take less than half the CPU time without it (docs/notebook.md).
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return compiler_options(REDUCE_IN_LOOPS, *[NO_SPLITTING] * (mesh.size > 1))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts arrays that every process has on devices of all processes; no process talks.

    Args:
        tree: arrays, the same in all processes.
        shardings: one for all of them, or a tree like theirs.

    Examples:
        >>> from gradmem_jax.parallel.sharding import MeshConfig, make_mesh, place, shardings
        >>> mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        >>> placed = place(params, shardings(params, mesh))
    """

    def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return _map_with_shardings(put, tree, shardings)


def placed_shapes(tree: PyTree, shardings: PyTree) -> PyTree:
    """Returns the shapes and dtypes of arrays as they would be after `place`, to restore them."""

    def shape(x: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return _map_with_shardings(shape, tree, shardings)


def _map_with_shardings(function: Any, tree: PyTree, shardings: PyTree) -> PyTree:
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(function, tree, shardings)


def process_shard(sharding: NamedSharding, batch_size: int) -> tuple[int, int]:
    """Which part of every batch this process feeds, and how many parts there are.

    Raises:
        ValueError: the rows of this process's devices do not lie side by side.
    """
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    ranges = {index[0].indices(batch_size)[:2] for index in indices if index}
    first, last = min(ranges)[0], max(ranges)[1]
    rows = last - first
    require(
        rows == sum(stop - start for start, stop in ranges) and first % rows == 0,
        f"devices of process {jax.process_index()} hold rows {sorted(ranges)} of a batch of "
        f"{batch_size}, which are not one part of it; choose mesh axes so that each process holds "
        "neighbours, such as a tensor axis within one host.",
    )
    return first // rows, batch_size // rows


def gradient_on_mesh(
    fn: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    mesh: Mesh,
    params: PyTree,
    batch: PyTree,
    totals: PyTree,
    gradient_like: PyTree,
    gathered_by_fn: str | None = None,
) -> tuple[PyTree, PyTree]:
    """Adds up what every device computes from its part of a batch.

    Parameters are gathered over `fsdp` once and gradients scattered once; `fn` runs without any
    communication between the parts of the batch, but for those that it gathers itself.

    Args:
        fn: `(params, part of the batch, totals) -> (gradient, metrics)`, sums over the part.
        mesh: from `make_mesh`.
        params: parameters, split as by `shardings`.
        batch: arrays [B, ...].
        totals: what all devices need alike.
        gradient_like: the part of the parameters that the gradient is of.
        gathered_by_fn: a regular expression of the paths of those parameters that `fn` gathers.

    Returns:
        The gradient, split like the parameters, and the metrics.
    """
    # XLA refuses sums over axes of one device in a program that leaves another axis to it.
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)
    if not axes:
        return fn(params, batch, totals)

    def manual(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda spec: _only(spec, axes), partition(tree, mesh))

    specs, gradient_specs = manual(params), manual(gradient_like)

    def is_left(path: Any) -> bool:
        return gathered_by_fn is not None and bool(re.search(gathered_by_fn, path_name(path)))

    def gather(path: Any, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        axis = _axis_of(spec, "fsdp")
        if axis is None or is_left(path):
            return x
        return jax.lax.all_gather(x, "fsdp", axis=axis, tiled=True)

    def reduce(path: Any, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        axis = _axis_of(spec, "fsdp")
        if axis is None:
            return jax.lax.psum(x, axes)
        if not is_left(path):
            x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=axis, tiled=True)
        return jax.lax.psum(x, "data") if "data" in axes else x

    def on_device(params: PyTree, part: PyTree, totals: PyTree) -> tuple[PyTree, PyTree]:
        gradient, metrics = fn(jax.tree.map_with_path(gather, params, specs), part, totals)
        gradient = jax.tree.map_with_path(reduce, gradient, gradient_specs)
        return gradient, jax.lax.psum(metrics, axes)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(specs, PartitionSpec(axes), PartitionSpec()),
        out_specs=(gradient_specs, PartitionSpec()),
        axis_names=set(axes) if mesh.shape["tensor"] > 1 else set(AXES),
        check_vma=False,
    )(params, batch, totals)


def whole_layers(params: PyTree, width: int) -> PyTree:
    """Shapes and dtypes of parameters as they are once each layer has gathered its own.

    Args:
        params: of a model whose `lm` is a transformer, split as `gradient_on_mesh` leaves them.
        width: d of the language model.
    """
    if not _is_split():
        return params

    def whole(path: Any, x: Any) -> Any:
        name = path_name(path)
        if not re.search(LAYERS, name):
            return x
        axes = zip(x.shape, logical_axes(name, x.ndim), strict=True)
        shape = [width if axis == "embed" else size for size, axis in axes]
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return jax.tree.map_with_path(whole, params)


def _is_split() -> bool:
    """Whether this is traced for one of several devices that each keep parts of parameters."""
    return "fsdp" in jax.sharding.get_abstract_mesh().manual_axes


def gather_layer(params: PyTree, *, width: int, dtype: Any) -> PyTree:
    """Whole parameters of a layer from the parts that each device keeps, in `dtype`.

    Their gradients are summed over devices in the parameters' own dtype. Outside of
    `gradient_on_mesh` parameters are whole, and stay as they are.

    Args:
        params: of one layer of a transformer, in which "embed" axes have the model's width.
        width: d; an axis that is shorter is split.
        dtype: what is sent, and what the layer computes in.
    """
    if not _is_split():
        return params

    def gather(path: Any, x: jax.Array) -> jax.Array:
        names = logical_axes(f"/{path_name(path)}", x.ndim)
        split = [i for i, n in enumerate(names) if n == "embed" and x.shape[i] != width]
        return _gathered(x, split[0], dtype) if split else x

    return jax.tree.map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x: jax.Array, axis: int, dtype: Any) -> jax.Array:
    return jax.lax.all_gather(x.astype(dtype), "fsdp", axis=axis, tiled=True)


def _gather_forward(x: jax.Array, axis: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    return _gathered(x, axis, dtype), jnp.zeros((), x.dtype)


def _gather_backward(
    axis: int, dtype: Any, like: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array]:
    del dtype
    whole = cotangent.astype(like.dtype)
    return (jax.lax.psum_scatter(whole, "fsdp", scatter_dimension=axis, tiled=True),)


_gathered.defvjp(_gather_forward, _gather_backward)


def _only(spec: PartitionSpec, axes: Sequence[str]) -> PartitionSpec:
    """A spec with some of its mesh axes."""
    return PartitionSpec(*(axis if axis in axes else None for axis in spec))


def _axis_of(spec: PartitionSpec, name: str) -> int | None:
    return tuple(spec).index(name) if name in tuple(spec) else None
