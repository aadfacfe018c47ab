"""Measures one setting in a process of its own, so that peak memory is that setting's.

`experiments.benchmark`, `scaling` and `break_even` start it:

  python -m experiments.speed.measure step '{"context_tokens": 225, "write_steps": 2}'
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.program import cores, heap, startup
from experiments.program.console import say
from experiments.speed.flops import inference_flops, step_flops
from experiments.speed.reference_runner import process_peak_bytes
from experiments.speed.setting import MIB, Setting
from gradmem_jax.checks import require, require_choice
from gradmem_jax.lm.attention import KVCache, make_cache
from gradmem_jax.memory.full_context import FullContext, FullContextConfig
from gradmem_jax.memory.gradmem import GradMem
from gradmem_jax.memory.interface import kv_cache_floats, memory_floats
from gradmem_jax.parallel import sharding
from gradmem_jax.training.optimizer import OptimizerConfig, make_optimizer
from gradmem_jax.training.step import TrainState, init_state, jit_train_step
from gradmem_jax.trees import Params

_SHORTEST = 0.3  # seconds that the timed calls take together, at least
_MOST_CALLS = 50
_MATRIX_SIZE = 2048


def peak_bytes() -> int:
    """Peak memory so far: of the first accelerator, or of this process on CPU."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    return process_peak_bytes()


def call_seconds(function: Callable[[], Any], repeats: int) -> list[float]:
    """Times calls of a function whose results JAX computes, after one that is not timed.

    Args:
        function: what is called.
        repeats: how often; more often if that takes hardly any time.
    """
    seconds: list[float] = []
    for _ in range(1 + max(repeats, _MOST_CALLS)):
        started = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - started)
        if len(seconds) > repeats and sum(seconds[1:]) >= _SHORTEST:
            break
    return seconds[1:]


def measure_step(setting: Setting) -> dict[str, Any]:
    """Compiles and times a training step."""
    model, optimizer = GradMem(setting.model_config()), make_optimizer(OptimizerConfig())
    mesh = _mesh(setting)
    batch = jax.device_put(setting.batch(), sharding.batch_sharding(mesh))

    def init() -> TrainState:
        return init_state(model.init(jax.random.key(0)), optimizer)

    where = sharding.shardings(jax.eval_shape(init), mesh)
    state = jax.jit(init, out_shardings=where)()
    step = jit_train_step(model, optimizer, state, mesh, setting.micro_batches)
    compiled, compiling = _compile(step, state, batch)
    measured: dict[str, Any] = {}
    if setting.repeats:
        metrics: Any = None

        def train() -> Any:
            nonlocal state, metrics
            state, metrics = compiled(state, batch)
            return metrics

        measured = _summary(call_seconds(train, setting.repeats))
        measured["loss"] = round(float(metrics["loss"]), 6)
    return measured | compiling | {"gflop": round(step_flops(setting) / 1e9, 3)}


def measure_inference(setting: Setting) -> dict[str, Any]:
    """Compiles and times WRITE and READ of a batch."""
    model = GradMem(setting.model_config())
    mesh = _mesh(setting)
    batch = jax.device_put(setting.batch(), sharding.batch_sharding(mesh))
    whole = NamedSharding(mesh, PartitionSpec())
    params = jax.jit(model.init, out_shardings=whole)(jax.random.key(0))

    def answer(params: Params, part: dict[str, jax.Array]) -> jax.Array:
        memory, _ = model.write_memory(params, part["context_ids"])
        return model.read_memory(params, memory, part["query_ids"])

    compiled, compiling = _compile(_jit(answer, mesh), params, batch)
    measured: dict[str, Any] = {}
    if setting.repeats:
        measured = _summary(call_seconds(lambda: compiled(params, batch), setting.repeats))
    return measured | compiling | {"gflop": round(inference_flops(setting) / 1e9, 3)}


def measure_break_even(setting: Setting) -> dict[str, Any]:
    """Times WRITE and READ, and what they replace: a prefill, and queries to its cache.

    The cache has room for the query, and a query returns its logits only, so that nothing but its
    own work is timed.
    """
    batch = jax.device_put(setting.batch())
    context_ids, query_ids = batch["context_ids"], batch["query_ids"][:, 0]
    model = GradMem(setting.model_config())
    params = jax.jit(model.init)(jax.random.key(0))
    require(setting.cpu_devices == 1, "break-even is measured on one device.")
    write, read = _jit_first(model.write_memory), jax.jit(model.read_memory)
    memory = write(params, context_ids)

    full = FullContext(FullContextConfig(lm=setting.lm_config()))
    lm_params = {"lm": params["lm"]}
    prefill = _jit_first(full.write_memory)
    kept = prefill(lm_params, context_ids)
    cache = make_cache(kept.keys, kept.values, kept.length, setting.query_tokens)

    @jax.jit
    def ask(params: Params, cache: KVCache, ids: jax.Array) -> jax.Array:
        hidden, _ = full.apply_lm(params, full.embed(params, ids), cache=cache)
        return full.apply_lm(params, hidden, method="unembed")

    calls: dict[str, Callable[[], Any]] = {
        "write": lambda: write(params, context_ids),
        "read": lambda: read(params, memory, query_ids),
        "prefill": lambda: prefill(lm_params, context_ids),
        "query": lambda: ask(lm_params, cache, query_ids),
    }
    repeats = max(setting.repeats, 1)
    medians = {
        f"{name}_seconds": float(np.median(call_seconds(call, repeats)))
        for name, call in calls.items()
    }
    float_size = jnp.dtype(setting.dtype).itemsize
    return medians | {
        "memory_bytes": memory_floats(memory) * memory.dtype.itemsize,
        "cache_bytes": kv_cache_floats(setting.lm_config(), setting.context_tokens) * float_size,
    }


def _jit_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function for the first of its results."""

    def first(*arguments: Any) -> Any:
        return function(*arguments)[0]

    return jax.jit(first)


def measure_matmul(setting: Setting) -> dict[str, Any]:
    """Times a square matrix product in the setting's dtype, what a step is held against."""
    shape, dtype = (_MATRIX_SIZE, _MATRIX_SIZE), setting.dtype
    x = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    product = jax.jit(lambda x: x @ x)
    seconds = min(call_seconds(lambda: product(x), max(setting.repeats, 5)))
    rate = 2 * math.prod(shape) * shape[0] / seconds
    return {"dtype": dtype, "gflop_per_second": round(rate / 1e9, 1)}


MEASURES: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "step": measure_step,
    "inference": measure_inference,
    "break_even": measure_break_even,
    "matmul": measure_matmul,
}


def _mesh(setting: Setting) -> Mesh:
    if setting.cpu_devices == 1:
        return sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    return sharding.make_mesh(sharding.MeshConfig(), jax.devices("cpu"))


def _jit(function: Callable[[Params, Any], Any], mesh: Mesh) -> Any:
    """A jitted function of parameters and a batch, of which each device takes its part."""
    if mesh.size == 1:
        return jax.jit(function)
    batch = PartitionSpec(sharding.BATCH_AXES)
    on_mesh = jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch, check_vma=False
    )
    return jax.jit(on_mesh, compiler_options=sharding.mesh_compiler_options(mesh))


def _compile(function: Any, *arguments: Any) -> tuple[Any, dict[str, Any]]:
    before, started = peak_bytes(), time.perf_counter()
    compiled = function.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    heap.give_back()
    return compiled, {
        "compile_seconds": round(seconds, 2),
        "temporary_mib": round(compiled.memory_analysis().temp_size_in_bytes / MIB, 2),
        "peak_mib_before_compile": round(before / MIB),
    }


def _summary(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "seconds": round(float(np.median(seconds)), 5),
        "seconds_min": round(min(seconds), 5),
        "calls": len(seconds),
        "peak_mib": round(peak_bytes() / MIB),
    }


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    heap.share_arenas()
    require(len(arguments) == 3, f"usage: measure {'|'.join(MEASURES)} JSON")
    _, kind, fields = arguments
    require_choice("kind", kind, tuple(MEASURES))
    setting = Setting(**json.loads(fields))
    devices = cores.count_devices(setting.cpu_devices, setting.batch_size)
    jax.config.update("jax_num_cpu_devices", devices)
    setting = setting.resolved()
    measured = MEASURES[kind](setting)
    measured |= {"cpu_devices": setting.cpu_devices, "micro_batches": setting.micro_batches}
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    say(json.dumps(measured | device))


if __name__ == "__main__":
    startup.run(main, takes_words=True)
