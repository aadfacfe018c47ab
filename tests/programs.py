"""Programs as users start them, but forked from a process that has imported what they share.

Importing JAX takes longer than most of what tests start programs for. A fork has flags, arguments,
environment, input and output of its own, and starts its own devices.
"""

import atexit
import functools
import importlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import traceback
import warnings

ROOT = pathlib.Path(__file__).parents[1]
_DEVICES = "--xla_force_host_platform_device_count"
_SHARED = (
    *("answers.open_model", "answers.writing", "results.figures", "run.build", "run.evaluation"),
    "run.stage",
)  # no flags


def start(program, *arguments, devices=8, keyboard=""):
    """Runs a program of experiments/ to its end; returns status and output as subprocess.run."""
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdin", "stdout", "stderr")]
        pathlib.Path(files[0]).write_text(keyboard)
        words = [f"experiments.{program}", *map(os.fspath, arguments)]
        call = {"words": words, "environment": environment(devices), "files": files}
        server = _server()
        print(json.dumps(call), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        out, errors = (pathlib.Path(path).read_text() for path in files[1:])
    return subprocess.CompletedProcess(words, status, out, errors)


def environment(devices):
    """That of the tests, with so many simulated devices; None leaves the number open."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if _DEVICES not in flag]
    if devices is not None:
        flags.append(f"{_DEVICES}={devices}")
    return os.environ | {"XLA_FLAGS": " ".join(flags)}


@functools.cache
def _server():
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.programs"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return server


def _serve():
    for name in _SHARED:
        importlib.import_module(f"experiments.{name}")
    for line in sys.stdin:
        call = json.loads(line)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no device has been started, and no thread of JAX
            child = os.fork()
        if not child:
            _run(**call)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(words, environment, files):
    """Becomes a program and never returns."""
    os.environ.clear()
    os.environ.update(environment)
    for number, (path, mode) in enumerate(
        zip(files, (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT), strict=True)
    ):
        os.dup2(os.open(path, mode), number)
    sys.argv = words
    status = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
