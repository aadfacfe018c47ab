"""What a program says of its work before it is compiled: operations of matrix products."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from gradmem_jax.lm.fused import attention as fused


def count_flops(program: Any, platform: str = "tpu") -> float:
    """Counts operations of the matrix products of a jaxpr, a loop's body as often as it runs.

    A multiplication and an addition are 2 operations. What is computed twice to save memory counts
    twice. Of branches the longest counts, a loop without a known number of turns once.

    Args:
        program: a jaxpr, as `jax.jit(f).trace(...).jaxpr` has it; inside of `shard_map`, of one
            device.
        platform: for which it is compiled; kernels of attention differ in their blocks.
    """
    return _add_up(program, functools.partial(_product_flops, platform=platform))


def count_read_again(program: Any, platform: str) -> float:
    """Bytes that kernels of attention read once more, as their blocks say, in a jaxpr.

    The text of a compiled program has only what they take, each array once.
    """

    def of_equation(equation: Any) -> float:
        cost = _attention_cost(equation, platform)
        return 0 if cost is None else cost.read_again

    return _add_up(program, of_equation)


def _add_up(program: Any, of_equation: Callable[[Any], float]) -> float:
    total: float = 0
    for equation in getattr(program, "jaxpr", program).eqns:
        name, params = equation.primitive.name, equation.params
        leaves = jax.tree.leaves(params, is_leaf=_is_program)
        inner = [_add_up(leaf, of_equation) for leaf in leaves if _is_program(leaf)]
        if name == "scan":
            total += params["length"] * sum(inner)
        elif name == "cond":
            total += max(inner, default=0)
        elif not inner:
            total += of_equation(equation)
        else:
            total += sum(inner)
    return total


def _is_program(value: Any) -> bool:
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def _attention_cost(equation: Any, platform: str) -> fused.Cost | None:
    operands = [x.aval for x in equation.invars]
    machine: fused.Machine = "tpu" if platform == "tpu" else "gpu"
    return fused.cost(equation.primitive.name, operands, machine)


def _product_flops(equation: Any, platform: str) -> float:
    cost = _attention_cost(equation, platform)
    if cost is not None:
        return cost.flops
    dimensions = equation.params.get("dimension_numbers", equation.params.get("dimensions"))
    if equation.primitive.name not in ("dot_general", "product"):
        return 0
    (contracted, _), _ = dimensions
    left, result = equation.invars[0].aval, equation.outvars[0].aval
    return 2 * result.size * math.prod(left.shape[axis] for axis in contracted)
