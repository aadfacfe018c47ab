"""Settings of every test: CPU, eight simulated devices, little time spent on compiling."""

import importlib.metadata
import os
import shutil
import sys
import tempfile

_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know this flag
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # halves the time of compiling
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What a test has compiled, later ones find here, as do pytest's workers and programs they start.
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not _IS_WORKER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gradmem_jax_tests_")
# With a limit JAX takes a lock (of the package filelock) and nobody reads half a file.
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**32)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import chex  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

flags.FLAGS.mark_as_parsed()  # absltest asks a flag where temporary folders go


def pytest_addoption(parser):
    parser.addoption("--run_slow", action="store_true", help="Run the slow tests too.")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run_slow"):
        return
    skip = pytest.mark.skip(reason="slow; runs with --run_slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def pytest_unconfigure():
    if not _IS_WORKER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _clear_trace_counts():
    chex.clear_trace_counter()


def pytest_terminal_summary(terminalreporter):
    bad_inputs = sys.modules.get("tests.bad_inputs")
    if bad_inputs:
        tried = ", ".join(f"{count} {name}" for name, count in bad_inputs.TRIED.items())
        terminalreporter.write_line(f"bad inputs tried: {bad_inputs.TRIED.total()} ({tried})")
