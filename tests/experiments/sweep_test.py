"""The sweep program: how it is stopped, its locks, and one real run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from absl.testing import absltest, parameterized

from experiments.program import locks
from experiments.sweeps import runner

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "experiments/configs/kv_quick.py")
WORKER = (
    "from experiments import sweep; from experiments.sweeps import runner; from absl import app; "
    "{stub}; app.run(sweep.main)"
)
TINY = {
    "num_steps": 2,
    "evaluate_every": 2,
    "log_every": 2,
    "num_eval_samples": 8,
    "batch_size": 4,
    "lm.num_layers": 1,
    "lm.width": 8,
    "model.num_write_steps": 1,
    "data.num_pairs": 2,
    "data.queries_per_context": 2,
    "optimizer.warmup_steps": 1,
    "final_num_write_steps": (1,),
}


class SweepTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path) / "runs"

    def sweep_file(self, text):
        return self.create_tempfile("sweep_file.py", textwrap.dedent(text)).full_path

    def start_sleeping_worker(self):
        """Starts the program with a training that sleeps; returns it and the child's id."""
        path = self.sweep_file(
            f"""
            from experiments.sweeps.run_list import Run
            def get_runs(): return [Run("a", {CONFIG!r})]
            """
        )
        child = "import os, time; print(os.getpid(), 'sleeps', flush=True); time.sleep(100)"
        replace = f"runner.command = lambda run, root: [{sys.executable!r}, '-c', {child!r}]"
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER.format(stub=replace), f"--sweep={path}"]
            + [f"--root={self.root}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(worker.stdout.close)
        self.addCleanup(worker.kill)
        log = self.root / "a" / "train.log"
        for _ in range(600):
            if log.exists() and "sleeps\n" in log.read_text():
                break
            self.assertIsNone(worker.poll())
            time.sleep(0.1)
        pid = int(log.read_text().splitlines()[1].split()[0])
        return worker, pid

    @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
    def test_signals_stop_the_child(self, number):
        worker, pid = self.start_sleeping_worker()
        worker.send_signal(number)
        out, _ = worker.communicate(timeout=20)
        self.assertEqual(worker.returncode, 128 + number)
        self.assertIn("the same command will go on", out)
        with self.assertRaises(ProcessLookupError):
            os.kill(pid, 0)

    def test_child_of_a_killed_worker_keeps_its_lock(self):
        worker, pid = self.start_sleeping_worker()
        worker.kill()
        worker.wait()
        with locks.hold(self.root / "a" / runner.LOCK) as held:
            self.assertIsNone(held)
        os.kill(pid, signal.SIGKILL)
        for _ in range(100):
            with locks.hold(self.root / "a" / runner.LOCK) as held:
                if held:
                    return
            time.sleep(0.1)
        self.fail("the lock is still held")

    @pytest.mark.slow
    def test_real_runs(self):
        path = self.sweep_file(
            f"""
            from experiments.sweeps.run_list import Run, chain
            def get_runs():
                tiny = {TINY!r}
                longer = tiny | {{"data.num_pairs": 3}}
                return chain([Run("n2", {CONFIG!r}, tiny), Run("n3", {CONFIG!r}, longer)])
            """
        )
        words = [sys.executable, "-m", "experiments.sweep", f"--sweep={path}"]
        start = lambda *more: subprocess.run(
            [*words, f"--root={self.root}", *more],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},  # one device
            capture_output=True,
            text=True,
        )
        done = start("--dry_run")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"(?m)^\S+ -m .*=\S+/n3 .*--config.init_from=\S+/n2$")
        self.assertFalse(self.root.exists())

        (self.root / "n3" / "checkpoints" / "1").mkdir(parents=True)
        (self.root / "n3" / "config.json").write_text('{"method": "rmt"}')
        done = start()
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"1/2 n2 \| exact match \d")
        self.assertIn("step 2/2 N = 2, K = 1", (self.root / "n2" / "train.log").read_text())
        self.assertRegex(done.stdout, r"n3 holds a run with other values of .*'method'")
        self.assertIn("failed: n3", done.stdout)
        metrics = json.loads((self.root / "n2" / "metrics.json").read_text())
        self.assertEqual((metrics["task"], metrics["steps"]), ("kv_retrieval", 2))


if __name__ == "__main__":
    absltest.main()
