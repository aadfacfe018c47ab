"""Times causal attention alone, in a process of its own; `experiments.measure_device` starts it.

python -m experiments.speed.attention '{"shape": [8, 2048, 32, 8, 64], "implementation": "xla"}'
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradmem_jax
from experiments.program import startup
from experiments.program.console import say
from experiments.speed.measure import call_seconds, peak_bytes
from experiments.speed.setting import MIB
from gradmem_jax.checks import require

Arrays = tuple[jax.Array, jax.Array, jax.Array]


def measure(
    shape: Sequence[int], implementation: Any, dtype: str = "bfloat16", repeats: int = 5
) -> dict[str, Any]:
    """Times attention, its gradient, and forward over reverse, what WRITE needs.

    Args:
        shape: B, S, H, Hkv, D.
        implementation: see `gradmem_jax.attention`.
        dtype: of queries, keys and values.
        repeats: timed calls of each.

    Returns:
        Seconds of each, those of the last once more as `seconds`, and the peak memory of all.
    """
    batch_size, length, heads, kv_heads, width = shape
    keys = jax.random.split(jax.random.key(0), 6)
    sizes = [(batch_size, length, number, width) for number in (heads, kv_heads, kv_heads)] * 2
    draws = [jax.random.normal(key, size, dtype) for key, size in zip(keys, sizes, strict=True)]
    inputs, direction = tuple(draws[:3]), tuple(draws[3:])

    def attend(*inputs: jax.Array) -> jax.Array:
        return gradmem_jax.attention(*inputs, implementation=implementation)

    def total(*inputs: jax.Array) -> jax.Array:
        return jnp.square(attend(*inputs).astype(jnp.float32)).sum()

    def gradient(*inputs: jax.Array) -> Arrays:
        return jax.grad(total, argnums=(0, 1, 2))(*inputs)

    def second_order(*inputs: jax.Array) -> tuple[Arrays, Arrays]:
        return jax.jvp(gradient, inputs, direction)

    functions: dict[str, Callable[..., Any]] = {
        "forward": attend,
        "gradient": gradient,
        "second_order": second_order,
    }
    found: dict[str, Any] = {}
    for name, function in functions.items():
        compiled = jax.jit(function).lower(*inputs).compile()

        def call(compiled: Any = compiled) -> Any:
            return compiled(*inputs)

        found[f"{name}_seconds"] = round(float(np.median(call_seconds(call, repeats))), 6)
        memory: Any = compiled.memory_analysis()
        found[f"{name}_temporary_mib"] = round(memory.temp_size_in_bytes / MIB, 1)
    peak = {"seconds": found["second_order_seconds"], "peak_mib": round(peak_bytes() / MIB)}
    return found | peak | {"device": jax.devices()[0].device_kind}


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    require(len(arguments) == 2, "usage: attention JSON")
    say(json.dumps(measure(**json.loads(arguments[1]))))


if __name__ == "__main__":
    startup.run(main, takes_words=True)
