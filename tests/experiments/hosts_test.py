"""Two real processes on this machine train one model together."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
from unittest import mock

import chex
import jax
import numpy as np
from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from experiments import hosts
from experiments.stopping import EXIT_STOPPED
from gradmem_jax import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = {
    "num_steps": 6,
    "evaluate_every": 3,
    "log_every": 3,
    "num_eval_samples": 13,
    "batch_size": 8,
    "lm.num_layers": 1,
    "lm.width": 8,
    "lm.num_heads": 2,
    "model.num_write_steps": 1,
    "data.num_pairs": 2,
    "data.queries_per_context": 2,
    "optimizer.warmup_steps": 1,
    "optimizer.learning_rate": 1e-2,
    "final_num_write_steps": "(1,)",
    "curriculum.num_pairs": "()",
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class HostsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def start(self, name, num_processes=1, devices=2, **changes):
        """Starts the program, `devices` in all."""
        fields = [f"--config.{field}={value}" for field, value in (FLAGS | changes).items()]
        local = devices // num_processes
        environment = os.environ | {
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            f"--xla_force_host_platform_device_count={local}",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if num_processes > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}
            environment |= {"JAX_NUM_PROCESSES": str(num_processes)}
        processes = []
        for i in range(num_processes):
            own = [f"--process_id={i}"] if num_processes > 1 else []
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "experiments.train"]
                + [f"--workdir={self.folder / name}", *fields, *own],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.addCleanup(process.stdout.close)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            processes.append(process)
        return processes

    def finish(self, processes, code=0):
        outputs = [process.communicate()[0] for process in processes]
        codes = [process.returncode for process in processes]
        self.assertEqual(codes, [code] * len(codes), "\n=====\n".join(outputs))
        return outputs

    def params(self, name):
        return checkpoint.restore_params(self.folder / name / "checkpoints", "latest")

    def test_two_processes_match_one(self):
        mesh = {"mesh.fsdp": 2}
        first, second = self.finish(self.start("two", 2, **mesh))
        self.assertIn("6 steps", first)
        self.assertNotIn("step 3/6", second)
        self.finish(self.start("one", 1, **mesh))
        chex.assert_trees_all_close(self.params("two"), self.params("one"), rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    absltest.main()
