"""The programs as users start them, one after the other."""

import json
import pathlib
import subprocess
import sys

from absl.testing import absltest

from tests.programs import ROOT, environment, start

TINY = tuple(
    f"--config.{field}"
    for field in (
        "num_steps=4",
        "evaluate_every=2",
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


def start_training(test, arguments, changes, program=("-m", "experiments.train")):
    """Starts experiments.train and lets it run; `test` ends it when it is over."""
    process = subprocess.Popen(
        [sys.executable, "-u", *program, *arguments],
        cwd=ROOT,
        env=environment(devices=1) | changes,
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

        best_step = json.loads((workdir / "metrics.json").read_text())["best_step"]
        other_step = {2: 4, 4: 2}[best_step]
        done = start(
            "evaluate",
            f"--workdir={workdir}",
            "--num_write_steps=0,2",
            "--num_pairs=1,2",
            "--num_samples=20",
            "--split=train",
            f"--checkpoint={other_step}",
            "--dtype=bfloat16",
            devices=1,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads((workdir / "evaluation.json").read_text())
        self.assertEqual(report["dtype"], "bfloat16")
        self.assertEqual((report["step"], report["split"]), (other_step, "train"))
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
        self.assertRegex(done.stderr, "^error: .* is not a file .* the workdir of a run")

    def test_help_shows_examples_as_they_are_typed(self):
        text = start("train", "--help").stdout
        self.assertIn("metrics.json (required).", " ".join(text.split()))
        self.assertIn("kv_small.py \\\n      --root", start("sweep", "--help").stdout)


if __name__ == "__main__":
    absltest.main()
