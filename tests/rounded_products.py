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

from tests.golden_errors import errors

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
