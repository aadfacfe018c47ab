r"""Measures training steps and inference of the paper's KV model, each in its own process.

  python -m experiments.benchmark --num_pairs=32 --write_steps=1,2,5

With a checkout of the official PyTorch code, and a Python that has torch and transformers, both are
measured in turn and compared:

  python -m experiments.benchmark --write_steps=2,5 --what=step,inference \
      --reference=gradmem --reference_python=torch_env/bin/python \
      --out=runs/benchmark.json
"""

import sys
from collections.abc import Sequence

from absl import flags

from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.speed import child_processes, setting
from experiments.speed.comparison import comparison, table
from experiments.speed.reference import Reference
from experiments.speed.rounds import measure_rounds
from gradmem_jax.checks import AUTOMATIC, require, require_choice
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig

_NUM_PAIRS = flags.DEFINE_integer("num_pairs", 32, "Pairs N in a context.", lower_bound=1)
_WRITE_STEPS = flags.DEFINE_list("write_steps", ["2"], "WRITE steps K, one or several.")
_WHAT = flags.DEFINE_list("what", ["step"], "What is measured: step, inference, or both.")
_REFERENCE = flags.DEFINE_string("reference", "", "Checkout of the official PyTorch code.")
_REFERENCE_PYTHON = flags.DEFINE_string(
    "reference_python", sys.executable, "Python that has torch and transformers."
)
_REFERENCE_DEVICE = flags.DEFINE_string("reference_device", "cpu", "Its device: cpu or cuda.")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Times that all is measured.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", None, "CPUs to run on; default: all.")
_OUT = flags.DEFINE_string("out", None, "JSON file of all that was measured.")
_make_setting = setting.define_flags(
    without=("context_tokens", "query_tokens", "write_steps"),
    micro_batches=AUTOMATIC,
    cpu_devices=AUTOMATIC,
)
flags.adopt_module_key_flags(setting)

_KINDS = ("step", "inference")


def main(_: Sequence[str]) -> int:
    """Runs the program."""
    console.set_up_logging()
    out = _OUT.value and files.output_file("out", _OUT.value)
    for kind in _WHAT.value:
        require_choice("--what", kind, _KINDS)
    data = KVRetrievalConfig(num_pairs=_NUM_PAIRS.value)
    settings = {
        k: _make_setting(
            context_tokens=data.context_length, query_tokens=data.query_length, write_steps=k
        )
        for k in startup.integers("write_steps", _WRITE_STEPS.value)
    }
    some = next(iter(settings.values()))
    threads = child_processes.limit_threads(_THREADS.value)
    reference = None
    if _REFERENCE.value:
        require(some.repeats >= 1, f"--repeats={some.repeats} must be at least 1 to compare.")
        require(some.queries_per_context == 1, "the official code has one query a context.")
        reference = Reference(_REFERENCE.value, _REFERENCE_PYTHON.value, _REFERENCE_DEVICE.value)
        reference.check()
    matmul = child_processes.measure("matmul", some) if some.repeats else {}
    if matmul:
        child_processes.report(f"square {some.dtype} matrix product", matmul)
    rows: list[child_processes.Measured] = []
    for kind in _WHAT.value:
        rows += [
            row | {"gflop_per_second": matmul.get("gflop_per_second")}
            for row in measure_rounds(kind, settings, _ROUNDS.value, reference)
        ]
        if out:  # what is there, should a later kind be stopped
            files.write_results(out, {"threads": threads, "matmul": matmul, "rows": rows})
    log.info("%d threads\n%s", threads, table(rows))
    if reference is not None:
        log.info("against the official code\n%s", comparison(rows))
    if out:
        log.info("wrote %s", out)
    return int(all("error" in row["ours"] for row in rows))


if __name__ == "__main__":
    startup.run(main)
