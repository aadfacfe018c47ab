"""Operations of matrix products in a program, whatever machine it is compiled for."""

import math
from typing import Any

import jax
from jax.extend import core


def count_flops(program: Any) -> int:
    """Counts operations of the matrix products of a jaxpr, a loop's body as often as it runs.

    A multiplication and an addition are 2 operations. What is computed twice to save memory counts
    twice. Of branches the longest counts, a loop without a known number of turns once.

    Args:
        program: a jaxpr, as `jax.jit(f).trace(...).jaxpr` has it; inside of `shard_map`, of one
            device.
    """
    total = 0
    for equation in getattr(program, "jaxpr", program).eqns:
        name, params = equation.primitive.name, equation.params
        leaves = jax.tree.leaves(params, is_leaf=_is_program)
        inner = [count_flops(leaf) for leaf in leaves if _is_program(leaf)]
        if name == "scan":
            total += params["length"] * sum(inner)
        elif name == "cond":
            total += max(inner, default=0)
        elif not inner:
            total += _product_flops(equation)
        else:
            total += sum(inner)
    return total


def _is_program(value: Any) -> bool:
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def _product_flops(equation: Any) -> int:
    dimensions = equation.params.get("dimension_numbers", equation.params.get("dimensions"))
    if equation.primitive.name not in ("dot_general", "product"):
        return 0
    (contracted, _), _ = dimensions
    left, result = equation.invars[0].aval, equation.outvars[0].aval
    return 2 * result.size * math.prod(left.shape[axis] for axis in contracted)
