"""Measuring in child processes: what ends with the program that measures."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from absl.testing import absltest

from tests.programs import ROOT

# Says its number and waits.
CHILD = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
PROGRAM = f"""
import sys
from experiments.speed.child_processes import run_json
run_json([sys.executable, "-c", {CHILD!r}])
"""


def runs(pid):
    """Whether a process runs, and is no more than an entry of one that has ended."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class ChildProcessesTest(absltest.TestCase):
    def test_a_child_ends_with_its_program(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        program = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=folder, env=environment)
        self.addCleanup(program.kill)
        until = time.monotonic() + 60
        while not ((folder / "pid").exists() and (folder / "pid").read_text()):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.1)
        program.send_signal(signal.SIGTERM)
        self.assertEqual(program.wait(60), 128 + signal.SIGTERM)
        self.assertFalse(runs(int((folder / "pid").read_text())))


if __name__ == "__main__":
    absltest.main()
