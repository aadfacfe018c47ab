"""Measures one training step of the paper's KV model: a JSON line of time and memory.

Run it once for each setting, so that peak memory is that setting's own. Example:

  python -m experiments.benchmark --num_pairs=32 --write_steps=2 --batch_size=64 \
      --meta_gradient=mixed
"""

import json
import resource
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments import reporting
from gradmem_jax.config import GradMemConfig, LlamaConfig
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig, KVRetrievalSource
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.memory.gradient import GradMem
from gradmem_jax.optimizer import OptimizerConfig, make_optimizer
from gradmem_jax.training import init_state, make_train_step

_NUM_PAIRS = flags.DEFINE_integer("num_pairs", 32, "Pairs in a context.", lower_bound=1)
_WRITE_STEPS = flags.DEFINE_integer("write_steps", 2, "WRITE steps K.", lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Contexts in a batch.", lower_bound=1)
_QUERIES = flags.DEFINE_integer("queries_per_context", 1, "Queries of a context.", lower_bound=1)
_META_GRADIENT = flags.DEFINE_enum(
    "meta_gradient", "mixed", ["mixed", "reverse"], "How second order is computed."
)
_MICRO_BATCHES = flags.DEFINE_integer("micro_batches", 1, "Parts of a batch.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 128, "Width of the model.", lower_bound=2)
_NUM_LAYERS = flags.DEFINE_integer("num_layers", 4, "Layers of the model.", lower_bound=1)
_NUM_MEMORY_TOKENS = flags.DEFINE_integer("num_memory_tokens", 8, "Memory tokens.", lower_bound=1)
_SCAN_LAYERS = flags.DEFINE_bool("scan_layers", False, "Run the layers as one scan.")
_REMAT = flags.DEFINE_enum("remat", "none", ["none", "dots", "full"], "What is recomputed.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Timed steps; 0 only compiles and reports temporary_mib.", lower_bound=0
)

MIB = 2**20


def peak_bytes() -> int:
    """Peak memory so far: of the first accelerator, or of this process on CPU."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure() -> dict[str, Any]:
    """Compiles and times the training step that the flags describe."""
    data = KVRetrievalConfig(
        num_pairs=_NUM_PAIRS.value, queries_per_context=_QUERIES.value, num_samples=2**20
    )
    lm = LlamaConfig(
        vocab_size=data.vocab_size,
        width=_WIDTH.value,
        num_layers=_NUM_LAYERS.value,
        scan_layers=_SCAN_LAYERS.value,
        remat=_REMAT.value,
        dtype=_DTYPE.value,
    )
    config = GradMemConfig(
        lm=lm,
        num_memory_tokens=_NUM_MEMORY_TOKENS.value,
        num_write_steps=_WRITE_STEPS.value,
        meta_gradient=_META_GRADIENT.value,
    )
    model, optimizer = GradMem(config), make_optimizer(OptimizerConfig())
    batch = next(make_iterator(KVRetrievalSource(data), _BATCH_SIZE.value, num_threads=0))
    del batch["context_kinds"]
    state = init_state(model.init(jax.random.key(0)), optimizer)
    batch = jax.device_put(batch)
    before = peak_bytes()
    started = time.perf_counter()
    step = make_train_step(model, optimizer, _MICRO_BATCHES.value)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - started
    after_compile = peak_bytes()
    measured: dict[str, Any] = {}
    if _REPEATS.value:
        seconds = []
        for _ in range(1 + _REPEATS.value):
            started = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, batch))
            seconds.append(time.perf_counter() - started)
        measured = {
            "step_seconds": round(float(np.median(seconds[1:])), 4),
            "step_seconds_min": round(min(seconds[1:]), 4),
            "peak_mib": round(peak_bytes() / MIB),
            "loss": round(float(metrics["loss"]), 6),
        }
    memory: Any = compiled.memory_analysis()
    return {
        "num_pairs": _NUM_PAIRS.value,
        "write_steps": _WRITE_STEPS.value,
        "batch_size": _BATCH_SIZE.value,
        "queries_per_context": _QUERIES.value,
        "meta_gradient": _META_GRADIENT.value,
        "micro_batches": _MICRO_BATCHES.value,
        "width": _WIDTH.value,
        "num_layers": _NUM_LAYERS.value,
        "dtype": _DTYPE.value,
        **measured,
        "compile_seconds": round(compile_seconds, 2),
        "peak_mib_before_compile": round(before / MIB),
        "peak_mib_before_run": round(after_compile / MIB),
        "temporary_mib": round(memory.temp_size_in_bytes / MIB, 1),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    reporting.set_up_logging()
    print(json.dumps(measure()), flush=True)


if __name__ == "__main__":
    app.run(main)
