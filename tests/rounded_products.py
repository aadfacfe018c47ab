"""What rounding of float32 products does to a memory: that of TPUs and GPUs, on a CPU.

Each product of a compiled program, those of derivatives too, is taken of operands rounded as XLA
has the device round them, with sums in float32. `python -m tests.rounded_products` prints the table
of docs/accelerators.md.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np
from jax import lax
from jax._src.interpreters import mlir as rules  # where lowerings can be replaced for a while
from jax.interpreters import mlir

from gradmem_jax import GradMem
from gradmem_jax.trees import PyTree
from tests.golden_cases import load_case

CASES = ("gradmem_llama_k1", "gradmem_llama_k5_head", "gradmem_gpt2_k2_proj_head")
_BITS = {"tpu": 7, "gpu": 10}  # of the mantissas of bfloat16 and TF32


def _rounded(x: jax.Array, platform: str) -> jax.Array:
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=_BITS[platform])


@contextlib.contextmanager
def rounding(platform: str) -> Iterator[None]:
    """Rounds operands of products of float32 as "tpu" or "gpu" does, in what is compiled inside."""
    lowerings = rules._platform_specific_lowerings["cpu"]
    exact = lowerings[lax.dot_general_p]

    def lower(ctx, lhs, rhs, *, precision, **params):
        is_float32 = all(x.dtype == np.float32 for x in ctx.avals_in)
        if not is_float32 or lax.Precision.HIGHEST in (precision or ()):
            return exact.rule(ctx, lhs, rhs, precision=precision, **params)

        def dot(lhs, rhs):
            params["precision"] = (lax.Precision.HIGHEST,) * 2
            return lax.dot_general_p.bind(lhs, rhs, **params)

        def compute(lhs, rhs):
            low_lhs, low_rhs = _rounded(lhs, platform), _rounded(rhs, platform)
            product = dot(low_lhs, low_rhs)
            if platform == "tpu" and precision and precision[0] == lax.Precision.HIGH:
                left, right = (
                    _rounded(x - y, platform) for x, y in ((lhs, low_lhs), (rhs, low_rhs))
                )
                product += dot(left, low_rhs) + dot(low_lhs, right)
            return product

        return mlir.lower_fun(compute, multiple_results=False)(ctx, lhs, rhs)

    changed = {lax.dot_general_p: dataclasses.replace(exact, rule=lower)}
    with mock.patch.dict(lowerings, changed):
        jax.clear_caches()
        yield
    jax.clear_caches()


def distance(got: PyTree, want: PyTree) -> float:
    """Norm of the difference, relative to that of what is wanted."""
    squares = jax.tree.map(lambda x, y: (np.square(x - y).sum(), np.square(y).sum()), got, want)
    sums = np.sum(jax.tree.leaves(squares, is_leaf=lambda x: isinstance(x, tuple)), axis=0)
    return float(np.sqrt(sums[0] / sums[1]))


def errors(name: str, precision: str) -> dict[str, float]:
    """How far memory, loss and gradient of a golden case are from the official ones, relative."""
    from tests.memory.parity_test import outer_loss

    case = load_case(name, lm={"matmul_precision": precision, "scan_layers": True})
    batch = {key: case.io[key] for key in ("context_ids", "query_ids", "labels")}
    run = jax.jit(jax.value_and_grad(outer_loss, has_aux=True), static_argnums=1)
    (loss, parts), gradients = jax.device_get(run(case.params, GradMem(case.config), batch))
    return {
        "memory": distance(parts["memory"], case.io["memory"]),
        "loss": abs(float(loss) / float(case.io["loss"][0]) - 1),
        "gradient": distance({key: gradients[key] for key in case.gradients}, case.gradients),
    }


def main() -> None:
    """Prints the table."""
    out = sys.stdout
    out.write("| case | on | `matmul_precision` | memory | loss | outer gradient |\n")
    out.write("|---|---|---|---:|---:|---:|\n")
    for name in CASES:
        for platform, precision in (
            ("tpu", "default"),
            ("tpu", "high"),
            ("gpu", "default"),
            ("gpu", "highest"),
        ):
            with rounding(platform):
                found = errors(name, precision)
            numbers = " | ".join(f"{found[key]:.0e}" for key in ("memory", "loss", "gradient"))
            out.write(f"| {name} | {platform} | {precision} | {numbers} |\n")


if __name__ == "__main__":
    main()
