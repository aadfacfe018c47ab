r"""Measures training steps and inference of the paper's KV model, each in its own process.

  python -m experiments.benchmark --num_pairs=32 --write_steps=1,2,5

With a checkout of the official PyTorch code, and a Python that has torch and transformers, both are
measured in turn and compared:

  python -m experiments.benchmark --write_steps=2,5 --what=step,inference --reference=gradmem \
      --reference_python=torch_env/bin/python --out=runs/benchmark.json
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.program import console, files, formatting, startup
from experiments.program.console import log
from experiments.speed import child_processes, setting
from experiments.speed.setting import Setting
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

_RUNNER = pathlib.Path(__file__).parent / "speed" / "reference_runner.py"
_KINDS = ("step", "inference")


def measure_reference(kind: str, setting: Setting | None = None) -> child_processes.Measured:
    """Measures the official code, or only checks that it can be started if kind is "check"."""
    fields = [] if setting is None else [json.dumps(dataclasses.asdict(setting))]
    command = [_REFERENCE_PYTHON.value, str(_RUNNER), _REFERENCE.value, kind, *fields]
    return child_processes.run_json([*command, f"--device={_REFERENCE_DEVICE.value}"])


def check_reference() -> None:
    """Raises ValueError unless the official code can be started."""
    directory = pathlib.Path(_REFERENCE.value)
    require(
        (directory / "grad_memgpt.py").is_file(),
        f"--reference={directory} has no grad_memgpt.py; give a checkout of "
        "https://github.com/yurakuratov/gradmem.",
    )
    require(
        pathlib.Path(_REFERENCE_PYTHON.value).is_file(),
        f"--reference_python={_REFERENCE_PYTHON.value} is no file; give the Python of an "
        "environment with torch and transformers.",
    )
    error = measure_reference("check").get("error")
    require(
        error is None,
        f"--reference={directory} does not start with --reference_python="
        f"{_REFERENCE_PYTHON.value}: {error}",
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Our figures, with the share of the machine's matmul rate that the steps reach."""
    head = ["what", "K", "seconds", "peak MiB", "temporary MiB", "compile s", "GFLOP", "of matmul"]
    lines = []
    for row in rows:
        ours, share = row["ours"], None
        seconds, gflop, rate = ours.get("seconds"), ours.get("gflop"), row["gflop_per_second"]
        if seconds and gflop and rate:
            share = f"{100 * gflop / seconds / rate:.0f} %"
        fields = ("peak_mib", "temporary_mib", "compile_seconds", "gflop")
        first = ours.get("error") or seconds
        values = [ours.get(field) for field in fields]
        lines.append([row["what"], row["write_steps"], first, *values, share])
    return formatting.markdown(head, lines)


def comparison(rows: Sequence[dict[str, Any]]) -> str:
    """The official code beside ours."""
    head = ["what", "K", "official s", "ours s", "faster", "official MiB", "ours MiB", "memory"]
    lines = []
    for row in rows:
        official, ours = row["reference"], row["ours"]
        pair = [official.get("error") or official["seconds"], ours.get("error") or ours["seconds"]]
        peaks = [official.get("peak_mib"), ours.get("peak_mib")]
        faster = memory = None
        if not any("error" in measured for measured in (official, ours)):
            faster = f"{pair[0] / pair[1]:.2f} x"
            memory = f"{100 * peaks[1] / peaks[0]:.0f} %"
        lines.append([row["what"], row["write_steps"], *pair, faster, *peaks, memory])
    return formatting.markdown(head, lines)


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
    if _REFERENCE.value:
        require(some.repeats >= 1, f"--repeats={some.repeats} must be at least 1 to compare.")
        require(some.queries_per_context == 1, "the official code has one query a context.")
        check_reference()
    matmul = child_processes.measure("matmul", some) if some.repeats else {}
    if matmul:
        child_processes.report(f"square {some.dtype} matrix product", matmul)
    rows = []
    for kind in _WHAT.value:
        for k, chosen in settings.items():
            measured: dict[str, list[child_processes.Measured]] = {"reference": [], "ours": []}
            for _round in range(_ROUNDS.value):
                if _REFERENCE.value:
                    measured["reference"].append(measure_reference(kind, chosen))
                    child_processes.report(f"{kind}, K = {k}, official", measured["reference"][-1])
                measured["ours"].append(child_processes.measure(kind, chosen))
                child_processes.report(f"{kind}, K = {k}", measured["ours"][-1])
            row: dict[str, Any] = {"what": kind, "write_steps": k, "rounds": measured}
            row |= {
                name: child_processes.summarise(results)
                for name, results in measured.items()
                if results
            }
            row["setting"] = dataclasses.asdict(chosen)
            row["gflop_per_second"] = matmul.get("gflop_per_second")
            rows.append(row)
    log.info("%d threads\n%s", threads, table(rows))
    if _REFERENCE.value:
        log.info("against the official code\n%s", comparison(rows))
    if out:
        files.write_json(out, {"threads": threads, "matmul": matmul, "rows": rows})
        log.info("wrote %s", out)
    return int(all("error" in row["ours"] for row in rows))


if __name__ == "__main__":
    startup.run(main)
