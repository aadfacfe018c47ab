"""What lets WRITE and READ run on any mesh, though they are written as if there were none.

- Auto axes leave all to the compiler.
- Explicit axes, which `jax.make_mesh` makes, ask of each operation how its result is split.
  `on_any_mesh` makes them Auto inside, and splits results as the batch is.
- Under `jax.shard_map` axes are Manual. With `check_vma=True` the type of an array says over which
  of them it varies, and the carry of a loop must vary from the start as it does at the end:
  `vary_like`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from gradmem_jax.trees import PyTree


def on_any_mesh(
    function: Callable[..., PyTree], batch: PyTree, batch_axes: PyTree, *args: PyTree
) -> PyTree:
    """Calls a function inside of `jax.jit`, whatever mesh its arguments lie on.

    Args:
        function: from `args` to arrays.
        batch: those of the arguments that are [B, ...].
        batch_axes: for each array of the result the axis of the batch; a tree that begins like it.
        *args: pytrees of arrays.

    Returns:
        What the function returns. Explicit axes split its batch as that of `batch`, and nothing
        else.
    """
    args = vary_like(args, args)
    mesh = _mesh_of(args)
    if not mesh.explicit_axes:
        return function(*args)
    splits = (jax.typeof(x).sharding.spec[:1] for x in jax.tree.leaves(batch))
    split = next((first for first, *_ in splits if first is not None), None)
    out_sharding = jax.tree.map(lambda axis: PartitionSpec(*[None] * axis, split), batch_axes)
    with jax.sharding.use_abstract_mesh(mesh):
        automatic = jax.sharding.auto_axes(
            function, axes=mesh.explicit_axes, out_sharding=out_sharding
        )
        return automatic(*args)


def vary_like(tree: PyTree, like: PyTree) -> PyTree:
    """Lets arrays vary over those axes of `jax.shard_map` that any array of `like` varies over.

    Where types say nothing of it, outside of `jax.shard_map` and with `check_vma=False`, this does
    nothing.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(like)))

    def vary(x: jax.Array) -> jax.Array:
        missing = axes - _varying_axes(x)
        return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return jax.tree.map(vary, tree) if axes else tree


def _varying_axes(x: Any) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _mesh_of(args: PyTree) -> AbstractMesh:
    """The mesh that is set, or else the one that arguments lie on; it may be empty."""
    meshes = [jax.sharding.get_abstract_mesh()]
    meshes += [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(args)]
    return next((mesh for mesh in meshes if not mesh.empty), meshes[0])
