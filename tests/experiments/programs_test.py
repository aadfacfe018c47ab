"""The programs as users start them: a process each."""

import json
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest

ROOT = pathlib.Path(__file__).parents[2]
TINY = tuple(
    f"--config.{field}"
    for field in (
        "num_steps=4",
        "evaluate_every=4",
        "log_every=2",
        "num_eval_samples=16",
        "batch_size=8",
        "lm.num_layers=1",
        "lm.width=8",
        "model.num_write_steps=1",
        "data.num_pairs=2",
        "data.queries_per_context=2",
        "optimizer.warmup_steps=1",
        "final_num_write_steps=(1,)",
    )
)


def start(program, *arguments, devices=8, keyboard=""):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{program}", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        input=keyboard,
    )


def start_training(test, arguments, environment, program=("-m", "experiments.train")):
    """Starts experiments.train and lets it run; `test` ends it when it is over."""
    process = subprocess.Popen(
        [sys.executable, "-u", *program, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    test.addCleanup(process.stdout.close)
    test.addCleanup(process.wait)
    test.addCleanup(process.kill)
    return process


class ProgramsTest(absltest.TestCase):
    def test_train_then_evaluate_on_fewer_devices(self):
        workdir = pathlib.Path(self.create_tempdir().full_path) / "run"
        done = start("train", f"--workdir={workdir}", *TINY)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("step 4/4 N = 2, K = 1 | loss", done.stdout)
        self.assertIn("answers from memory alone", done.stdout)

        done = start(
            "evaluate",
            f"--workdir={workdir}",
            "--num_write_steps=0,2",
            "--num_pairs=1,2",
            "--num_samples=20",
            "--dtype=bfloat16",
            devices=1,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads((workdir / "evaluation.json").read_text())
        self.assertEqual(report["dtype"], "bfloat16")
        self.assertEqual(set(report["by_task"]), {"N = 1", "N = 2"})
        for rows in report["by_task"].values():
            self.assertEqual(set(rows), {"0", "2"})
            for row in rows.values():
                low, high = row["confidence_interval"]
                self.assertTrue(0 <= low <= row["exact_match"] <= high <= 1)
                self.assertEqual(set(row["write_loss_of"]), {"key", "value", "delimiter"})
        self.assertStartsWith((workdir / "evaluation.png").read_bytes(), b"\x89PNG")
        self.assertEqual(report["trained"]["task"], "N = 2")

        done = start("evaluate", f"--workdir={workdir}", "--max_context_tokens=8", devices=1)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "^error: --max_context_tokens: .* has no max_context_tokens")

    def test_evaluate_refuses(self):
        folder = self.create_tempdir().full_path
        done = start("evaluate", f"--workdir={folder}")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "^error: cannot read .* the workdir of a run")

    def test_help_of_train(self):
        text = start("train", "--help").stdout
        for flag in ("config", "workdir", "[no]distributed", "coordinator_address"):
            self.assertIn(f"--{flag}:", text)
        for flag in ("num_processes", "process_id", "experiments/configs/default.py"):
            self.assertIn(flag, text)
        self.assertIn("metrics.json (required).", " ".join(text.split()))
        self.assertIn("--root=runs/kv_small \\\n", start("sweep", "--help").stdout)


if __name__ == "__main__":
    absltest.main()
