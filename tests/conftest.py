"""Settings of every test: CPU, eight simulated devices, little time and memory spent on compiling.

A worker of pytest-xdist gets whole test classes, so what they compile is compiled once. What a
module has compiled is given up behind it.
"""

import gc
import importlib.metadata
import os
import shutil
import sys
import tempfile

_FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",  # splitting costs more than a second thread gains
]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know this flag
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # halves the time of compiling
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"  # a path that is not there may be a name on a hub
# What a test has compiled, later ones find here, as do pytest's workers and programs they start.
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not _IS_WORKER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gradmem_jax_tests_")
# With a limit JAX takes a lock (of the package filelock) and nobody reads half a file.
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**32)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # where operations come from, nothing asks

import chex  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

from experiments.program import heap  # noqa: E402
from experiments.speed.reference_runner import process_peak_bytes  # noqa: E402
from gradmem_jax.memory import programs  # noqa: E402

_MOST_MIB = 2048  # so two workers, and the programs they start, fit into a laptop's 8 GB
_PEAKS = []  # MiB, of this process or of all workers

flags.FLAGS.mark_as_parsed()  # absltest asks a flag where temporary folders go


def pytest_addoption(parser):
    parser.addoption("--run_slow", action="store_true", help="Run the slow tests too.")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run_slow"):
        return
    skip = pytest.mark.skip(reason="slow; runs with --run_slow")
    for item in items:
        slow = [case for mark in item.iter_markers("slow_cases") for case in mark.args]
        if "slow" in item.keywords or item.name.endswith(tuple(f"_{case}" for case in slow)):
            item.add_marker(skip)


def pytest_collection_finish():
    """What is imported stays: the garbage collector, which tracing wakes often, need not see it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees what was compiled for the models of a file, which those of others are not equal to."""
    yield
    programs.forget()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "load":  # somebody asked for another one
        return None
    from xdist.scheduler import LoadScopeScheduling

    return LoadScopeScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    peak = process_peak_bytes() // 2**20
    if _IS_WORKER:
        session.config.workeroutput["peak_mib"] = peak
        return
    if not _PEAKS:
        _PEAKS.append(peak)
    if max(_PEAKS) > _MOST_MIB and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _PEAKS.append(getattr(node, "workeroutput", {}).get("peak_mib", 0))


def pytest_unconfigure():
    if not _IS_WORKER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _give_up_compiled_programs():
    yield
    jax.clear_caches()
    gc.collect()
    heap.give_back()


@pytest.fixture(autouse=True)
def _clear_trace_counts():
    chex.clear_trace_counter()


def pytest_terminal_summary(terminalreporter):
    peaks = ", ".join(map(str, _PEAKS))
    wrong = f": ERROR, more than {_MOST_MIB}" if max(_PEAKS) > _MOST_MIB else ""
    terminalreporter.write_line(f"MiB that tests took at most, by process: {peaks}{wrong}")
    bad_inputs = sys.modules.get("tests.bad_inputs")
    if bad_inputs:
        tried = ", ".join(f"{count} {name}" for name, count in bad_inputs.TRIED.items())
        terminalreporter.write_line(f"bad inputs tried: {bad_inputs.TRIED.total()} ({tried})")
