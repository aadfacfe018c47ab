"""The training program: a whole run, resuming, curriculum, divergence, refusals."""

import itertools
import json
import pathlib
import re
import sys
import time
from unittest import mock

import chex
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import train
from experiments.run import events, initial_state, progress, training_run
from experiments.run.build import build
from experiments.run.compiled_steps import CompiledSteps
from experiments.run.devices import find_devices
from experiments.run.evaluation import evaluate_params, one_query
from experiments.run.nonfinite import NonFiniteError, load_batch
from experiments.run.stage import RunningStage
from experiments.run.tensorboard_writer import read_scalars
from gradmem_jax.storage import checkpoint
from gradmem_jax.training import optimizer
from tests.experiments.tiny_run import target_stage, tiny_config


class Killed(BaseException):
    """Stands for a signal."""


class TrainTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def params(self, name, which="latest"):
        return checkpoint.restore_params(self.folder / name / "checkpoints", which)

    def train_and_kill(self, config, name, at_batch):
        calls = []

        def next_batch(stage, original=RunningStage.next_batch):
            calls.append(None)
            if len(calls) == at_batch:
                raise Killed
            return original(stage)

        with mock.patch.object(RunningStage, "next_batch", next_batch), self.assertRaises(Killed):
            train.train(config, self.folder / name)

    def test_whole_run(self):
        config = tiny_config(final_split="train")
        ticks = mock.Mock(monotonic=itertools.count(0, 100).__next__)
        self.enterContext(mock.patch.object(training_run, "time", ticks))
        with self.assertLogs("experiments", "INFO") as logs:
            summary = train.train(config, self.folder / "run")
        text = "\n".join(logs.output)
        self.assertRegex(
            text,
            r"step 4/8 N = 2, K = 1 \| loss \d.* \| exact match \d.* m?s/step.* samples/s.* left",
        )
        self.assertRegex(text, r"\?!.: -> .+ \((right|wrong, it is .!\|)\)")
        written = json.loads((self.folder / "run" / "metrics.json").read_text())
        self.assertEqual(written["steps"], 8)
        self.assertEqual(written["exact_match"], summary["exact_match"])
        self.assertEqual(set(written["by_num_write_steps"]), {"0", "1"})
        self.assertContainsSubset(
            {"compile_seconds", "seconds", "devices", "best_step", "task"}, written
        )
        self.assertIn("context", (self.folder / "run" / "answers.txt").read_text())
        self.check_records(config)

        with mock.patch.object(CompiledSteps, "find", side_effect=AssertionError):
            again = train.train(config, self.folder / "run")
        for name in ("seconds", "compile_seconds"):
            self.assertEqual(again[name], written[name])
        self.assertEqual(again["steps"], 8)
        self.assertEqual(again["by_num_write_steps"], summary["by_num_write_steps"])

        (model, task, _), devices = target_stage(config), find_devices(build(config))
        _, params = checkpoint.restore_params(
            self.folder / "run" / "checkpoints", "best", mesh=devices.mesh
        )
        options = dict(num_samples=24, split="train", mesh=devices.mesh)
        want = evaluate_params(model, params, one_query(task), [0, 1], **options)
        self.assertEqual(summary["by_num_write_steps"], want)

    def check_records(self, config):
        """What JSON files, TensorBoard and train.log have of the run."""
        page = (pathlib.Path(__file__).parents[2] / "docs" / "json_files.md").read_text()
        for name in ("metrics.json", "run.json"):
            fields = json.loads((self.folder / "run" / name).read_text())
            self.assertEqual(fields["version"], 1)
            evaluations = fields.get("by_num_write_steps", {}).values()
            for row in (fields, *fields.get("starts", []), *evaluations):
                for field in row:
                    self.assertIn(f"`{field}`", page)
        scalars = read_scalars(self.folder / "run")
        rates = optimizer.learning_rate_schedule(build(config).optimizer)
        want = [(step, np.float32(rates(step - 1))) for step in (2, 4, 6, 8)]
        np.testing.assert_allclose(scalars["train/learning_rate"], want)
        self.assertEqual([step for step, _ in scalars["train/host_gib"]], [2, 4, 6, 8])
        norms = scalars["train/write_gradient_norm"]
        self.assertEqual(scalars["train/write_gradient_norm_1"], norms)  # K = 1
        lines = (self.folder / "run" / "train.log").read_text()
        self.assertRegex(lines, r"\d\d\d\d-\d\d-\d\d .* step 8/8 .* rate 0.01, gradient .* host")
        (start,) = json.loads((self.folder / "run" / "run.json").read_text())["starts"]
        self.assertEqual((start["first_step"], start["versions"]["jax"]), (0, jax.__version__))
        self.assertEqual((start["command"], start["devices"]), (sys.orig_argv, ["8 cpu"]))

    def test_best_loss_and_speed_of_a_curriculum_that_waits(self):
        losses, away = iter((3.0, 1.0, np.nan, 2.0)), [0.0]

        def evaluate(*_, **__):
            away[0] += 1000
            rates = dict.fromkeys(("exact_match", "token_accuracy", "write_loss"), 0.5)
            return {1: rates | {"read_loss": next(losses)}}

        def find(steps, *arguments, original=CompiledSteps.find):
            away[0] += 1000
            steps.seconds += 1000
            return original(steps, *arguments)

        config = tiny_config(
            **{
                "evaluate_every": 2,
                "best_metric": "read_loss",
                "skip_nonfinite": 1,
                "curriculum.num_pairs": (1, 2),
                "curriculum.exact_match": 1.0,
                "optimizer.warmup_steps": 100,
            }
        )
        clock = lambda now=time.monotonic: now() + away[0]
        with (
            mock.patch.object(training_run, "evaluate_params", evaluate),
            mock.patch.object(CompiledSteps, "find", find),
            mock.patch.object(time, "monotonic", clock),
            self.assertLogs("experiments", "INFO") as logs,
        ):
            summary = train.train(config, self.folder / "run")
        self.assertEqual((summary["best_step"], summary["skipped_steps"]), (4, 1))
        self.assertIn("evaluation of step 6 is not finite; skipped, 1 of", "\n".join(logs.output))
        lines = re.findall(r"step \d/8 (N = \d).* ([\d.,]+ m?s)/step", "\n".join(logs.output))
        self.assertEqual([task for task, _ in lines], ["N = 1"] * 4)
        slow = [rate for _, rate in lines if re.fullmatch(r"(\d,|\d\d\d).* s", rate)]
        self.assertEmpty(slow)
        rates = dict(read_scalars(self.folder / "run")["train/learning_rate"])
        self.assertAlmostEqual(rates[8], 1e-2 * 7 / 100, places=7)  # every step was an update

    def test_killed_and_resumed_is_bit_identical(self):
        self.kill_and_resume("adamw")

    @pytest.mark.slow
    def test_killed_and_resumed_with_muon(self):
        self.kill_and_resume("muon")

    def kill_and_resume(self, name):
        config = tiny_config(
            **{"curriculum.num_pairs": (1, 2), "curriculum.exact_match": 0.0},
            log_every=3,
            save_every=5,
        )
        config.optimizer.name = name
        train.train(config, self.folder / "straight")
        # Batch 1 of each start only shows the shapes. Killed after step 6, the checkpoint is of 5.
        ticks = mock.Mock(monotonic=itertools.count(0, 1000).__next__)
        with mock.patch.object(training_run, "time", ticks):
            self.train_and_kill(config, "killed", at_batch=9)
        self.assertEqual(self.params("killed")[0], 5)
        summary = train.train(config, self.folder / "killed")
        self.assertGreater(summary["seconds"], 1000)  # of both starts
        files = (self.folder / "killed" / "tensorboard").iterdir()
        told = [
            event for path in files for event in events.read_events(path) if event.summary.value
        ]
        self.assertCountEqual(
            [(event.step, event.summary.value[0].tag.partition("/")[0]) for event in told],
            [(3, "train"), (4, "evaluation"), (6, "train"), (8, "train"), (8, "evaluation")],
        )
        for which in ("latest", "best"):
            chex.assert_trees_all_equal(
                self.params("straight", which), self.params("killed", which)
            )
        initial = initial_state.start_state(build(config)).params
        moved = np.abs(initial["lm"]["embedding"] - self.params("killed")[1]["lm"]["embedding"])
        self.assertGreater(moved.max(), 1e-3)

    def test_curriculum_and_early_stop(self):
        config = tiny_config(
            **{
                "curriculum.num_pairs": (1, 2),
                "curriculum.num_write_steps": (1, 1),
                "curriculum.exact_match": 0.0,
                "stop_at_exact_match": 0.0,
            }
        )
        leave_out = mock.patch.object(progress.Progress, "leave_out")
        with self.assertLogs("experiments", "INFO") as logs, leave_out as left_out:
            summary = train.train(config, self.folder / "run")
        seconds = sum(call.args[0] for call in left_out.call_args_list)
        self.assertGreater(seconds, summary["compile_seconds"])  # of both stages
        tasks = re.findall(r"step \d/8 (N = \d)", "\n".join(logs.output))
        self.assertEqual(tasks, ["N = 1", "N = 2"])
        self.assertEqual(summary["steps"], 4)
        config.stop_at_exact_match = 1.0  # a higher bar, and the run goes on
        self.assertEqual(train.train(config, self.folder / "run")["steps"], 8)

    def test_divergence_stops_and_keeps_the_batch(self):
        config = tiny_config(**{"optimizer.learning_rate": 1e38, "optimizer.warmup_steps": 0})
        error = r"step 2 is not finite.* state of step 2 is saved"
        with self.assertRaisesRegex(NonFiniteError, error) as raised:
            train.train(config, self.folder / "run")
        self.assertEqual(self.params("run")[0], 2)
        with self.assertRaisesRegex(ValueError, "stopped at step 2, as 1 steps .*init_from=.*run"):
            train.train(config, self.folder / "run")
        path = self.folder / "run" / "nonfinite_step_2.npz"
        self.assertIn(str(path), str(raised.exception))
        batch = load_batch(path)
        self.assertEqual(batch["context_ids"].shape, (8, 11))
        self.assertEqual((batch["step"], batch["num_write_steps"]), (2, 1))
        source = target_stage(config).task.source("train")
        for i, index in enumerate(batch["index"]):
            np.testing.assert_array_equal(batch["context_ids"][i], source[index]["context_ids"])

    def test_options(self):
        config = tiny_config(
            **{
                "num_steps": 2,
                "batch_size": 16,
                "num_micro_batches": 2,
                "mesh.fsdp": 2,
                "model.inner_loss_weight": 0.1,
                "write_optimizer.name": "adam",
                "write_optimizer.arguments": {"learning_rate": 0.1, "eps_root": 1e-8},
                "lm.scan_layers": True,
                "model.write_lora_rank": 2,
                "frozen": ("^lm/",),
            }
        )
        self.assertEqual(train.train(config, self.folder / "run")["steps"], 2)
        start = initial_state.start_state(build(config))
        _, params = self.params("run")
        jax.tree.map(np.testing.assert_array_equal, params["lm"], start.params["lm"])

    @parameterized.parameters("rmt", "full_context")
    def test_other_methods(self, method):
        self.train_method(method)

    @parameterized.parameters("armt", "mamba", "lact")
    @pytest.mark.slow
    def test_more_methods(self, method):
        self.train_method(method)

    def train_method(self, method):
        empty, written = self.learn(tiny_config(method))["by_num_write_steps"].values()
        self.assertNotAlmostEqual(empty["read_loss"], written["read_loss"], 3)

    def learn(self, config):
        """Trains, and sees that the loss falls."""
        with self.assertLogs("experiments", "INFO") as logs:
            summary = train.train(config, self.folder / "run")
        losses = re.findall(r"\| loss ([\d.]+)", "\n".join(logs.output))
        self.assertLess(float(losses[-1]), float(losses[0]) - 0.2)
        return summary

    def test_unknown_methods(self):
        with self.assertRaisesRegex(ValueError, "method='lstm'"):
            train.train(tiny_config(method="lstm"), self.folder / "other")
        with self.assertRaisesRegex(ValueError, "write_optimizer.name='sgd' needs"):
            train.train(tiny_config("rmt", **{"write_optimizer.name": "sgd"}), self.folder / "o")

    @parameterized.parameters(
        ({"batch_size": 6}, "batch_size=6 must be a multiple of the 8 parts"),
        ({"num_micro_batches": 2}, "8 / 8 samples .* num_micro_batches=2; use fewer"),
        ({"mesh.data": 3}, "mesh data=3 x fsdp=1 x tensor=1 takes 3 devices, there are 8"),
        ({"mesh.tensor": 16}, "8 devices are no multiple of 16"),
        ({"mesh.fsdp": 0}, "mesh.fsdp=0"),
        ({"save_every": -1}, "save_every=-1"),
        ({"num_micro_batches": 3}, "num_micro_batches=3"),
        ({"log_every": 0}, "log_every=0"),
        ({"num_eval_samples": 0}, "num_eval_samples"),
        ({"data.num_pairs": 9}, "num_pairs=9"),
        ({"lm.width": 9}, "width=9"),
        ({"model.write_learning_rate": -1.0}, "write_learning_rate=-1.0"),
        ({"optimizer.schedule": "linear"}, "schedule='linear'"),
        ({"frozen": ("^llm/",)}, "frozen '.llm/' matches no parameter"),
        ({"write_optimizer.name": "sgdd"}, "write_optimizer.name='sgdd'"),
        ({"curriculum.num_pairs": (1,)}, "last stage must be the task itself, 2 and 1"),
        (
            {"curriculum.num_pairs": (1, 2), "curriculum.num_write_steps": (1,)},
            "must have equal length",
        ),
    )
    def test_wrong_values_are_refused_before_a_compile(self, changes, message):
        with (
            mock.patch.object(jax, "jit", side_effect=AssertionError),
            self.assertRaisesRegex(ValueError, message),
        ):
            train.train(tiny_config(**changes), self.folder / "run")

    def test_segments(self):
        summary = self.learn(tiny_config(**{"data.num_segments": 2}))
        by_segment = summary["by_num_write_steps"][1]["exact_match_by_segment"]
        self.assertLen(by_segment, 2)
        self.assertBetween(summary["exact_match"], min(by_segment), max(by_segment))
        lines = (self.folder / "run" / "answers.txt").read_text().splitlines()
        for line in lines[:2]:  # a pair each
            self.assertRegex(line, r"^context  !.:.!\|?$")


if __name__ == "__main__":
    absltest.main()
