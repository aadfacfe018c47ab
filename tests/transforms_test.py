"""What works under which transformation of JAX: the table of docs/library.md is made here."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradmem_jax import generate
from tests.small import random_ids, small_model, small_params

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "library.md"
MODEL, REVERSE = (
    small_model(num_write_steps=1),
    small_model(num_write_steps=1, meta_gradient="reverse"),
)
PARAMS = small_params(MODEL)
CONTEXT, QUERY = random_ids(0, 8, 9), random_ids(1, 8, 4)
MEMORY = np.random.default_rng(0).standard_normal((8, 3, 8)).astype(np.float32)
close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)

# Functions of (memory [B, m, d], ids [B, n]) to arrays [B, ...]. Derivatives are taken for memory.
CALLS = {
    "WRITE": lambda memory, ids: MODEL.write_memory(PARAMS, ids, memory=memory)[0],
    'WRITE, `meta_gradient="reverse"`': lambda memory, ids: REVERSE.write_memory(
        PARAMS, ids, memory=memory
    )[0],
    "READ": lambda memory, ids: MODEL.read_memory(PARAMS, memory, ids),
    "`generate`": lambda memory, ids: generate(MODEL, PARAMS, memory, ids, 2),
}
DIRECTION = np.random.default_rng(1).standard_normal(MEMORY.shape).astype(np.float32)


def plain(call, ids):
    return call(MEMORY, ids)


def slope(call, ids):
    """Derivative of the sum of squares along a direction, by reverse mode."""

    def loss(memory):
        return (call(memory, ids) ** 2).sum()

    return jnp.vdot(jax.jit(jax.grad(loss))(MEMORY), DIRECTION)


def squares(call, ids):
    return lambda memory: (call(memory, ids) ** 2).sum()


def in_scan(call, ids):
    def body(carry, _):
        return carry, call(carry, ids)

    return jax.jit(lambda memory: jax.lax.scan(body, memory, None, length=2)[1][1])(MEMORY)


def forward(call, ids):
    return jax.jvp(squares(call, ids), (MEMORY,), (DIRECTION,))[1]


def forward_over_reverse(call, ids):
    return jax.jit(lambda x: jax.jvp(jax.grad(squares(call, ids)), (x,), (DIRECTION,))[1])(MEMORY)


def reverse_over_reverse(call, ids):
    along = lambda memory: jnp.vdot(jax.grad(squares(call, ids))(memory), DIRECTION)
    return jax.jit(jax.grad(along))(MEMORY)


def rematerialised(call, ids):
    return slope(jax.checkpoint(call), ids)


def mapped(call, ids):
    each = jax.vmap(lambda memory, ids: call(memory[None], ids[None])[0])
    return jax.jit(each)(MEMORY, ids)


def on_devices(call, ids):
    split = lambda x: np.reshape(x, (8, 1, *x.shape[1:]))
    out = jax.pmap(call)(split(MEMORY), split(ids))
    return out.reshape(8, *out.shape[2:])


def on_mesh(call, ids, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(call)(place(MEMORY), place(ids)))


def in_shard_map(call, ids):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    mapped = jax.shard_map(call, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    return jax.device_get(jax.jit(mapped)(MEMORY, ids))


def exported(call, ids):
    batch = jax.export.symbolic_shape("b")[0]
    shapes = (
        jax.ShapeDtypeStruct((batch, *MEMORY.shape[1:]), jnp.float32),
        jax.ShapeDtypeStruct((batch, ids.shape[1]), jnp.int32),
    )
    stored = jax.export.export(jax.jit(call))(*shapes).serialize()
    return jax.export.deserialize(bytearray(stored)).call(MEMORY, ids)


TABLE = {
    "`jax.jit`, also of a bound method": (lambda call, ids: jax.jit(call)(MEMORY, ids), plain),
    "`jax.vmap`": (mapped, plain),
    "inside of `jax.lax.scan`": (in_scan, plain),
    "reverse mode: `jax.grad`": (slope, forward),
    "`jax.checkpoint`": (rematerialised, slope),
    "forward mode: `jax.jvp`, `jax.jacfwd`": (forward, slope),
    "forward over reverse: `jax.hessian`": (forward_over_reverse, reverse_over_reverse),
    "reverse over reverse": (reverse_over_reverse, forward_over_reverse),
    "`jax.pmap`": (on_devices, plain),
    "a mesh with Auto axes": (functools.partial(on_mesh, axis_type=AxisType.Auto), plain),
    "a mesh with Explicit axes": (functools.partial(on_mesh, axis_type=AxisType.Explicit), plain),
    "`jax.shard_map`, `check_vma=True`": (in_shard_map, plain),
    "`jax.export` with a symbolic batch": (exported, plain),
}


@functools.cache
def numbers(function, name):
    """What a function makes of a call; several rows ask for the same."""
    ids = CONTEXT if "WRITE" in name else QUERY
    return jax.block_until_ready(function(CALLS[name], ids))


def cell(name, transformed, reference):
    """yes, or no if JAX refuses; numbers that differ are an error."""
    if "generate" in name and reference is not plain:
        return "–"  # tokens have no derivative
    try:
        got = numbers(transformed, name)
    except (TypeError, ValueError, NotImplementedError, jax.errors.JAXTypeError):
        return "no"
    try:
        want = numbers(reference, name)
    except (TypeError, ValueError, NotImplementedError):  # forward mode of mixed mode
        want = numbers(slope, 'WRITE, `meta_gradient="reverse"`')
    close(got, want)
    return "yes"


class TransformsTest(absltest.TestCase):
    def test_the_table_of_the_page(self):
        lines = [f"| under | {' | '.join(CALLS)} |", "|---" * (1 + len(CALLS)) + "|"]
        for row, functions in TABLE.items():
            cells = [cell(name, *functions) for name in CALLS]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        table = "\n".join(lines)
        self.assertIn(table, PAGE.read_text(), f"The table is now:\n{table}")


if __name__ == "__main__":
    absltest.main()
