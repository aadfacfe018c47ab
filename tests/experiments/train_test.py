"""The training program: a whole run, resuming, curriculum, divergence, refusals."""

import dataclasses
import itertools
import json
import pathlib
import re
import shutil
import time
from unittest import mock

import chex
import jax
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from experiments import train
from experiments.configs import default, kv_paper, kv_quick, kv_scaling, kv_small
from experiments.program import files
from experiments.run import initial_state, progress, training_run, workdir
from experiments.run.build import build
from experiments.run.compiled_steps import CompiledSteps
from experiments.run.devices import find_devices
from experiments.run.evaluation import evaluate_params, one_query
from experiments.run.nonfinite import NonFiniteError, load_batch
from experiments.run.stage import RunningStage
from gradmem_jax.storage import checkpoint
from gradmem_jax.training.optimizer import make_optimizer
from gradmem_jax.training.step import init_state, step_params
from tests.small import small_params


def tiny_config(method="gradmem", **changes):
    config = default.get_config(method)
    config.num_steps = 8
    config.batch_size = 8
    config.log_every = 2
    config.evaluate_every = 4
    config.num_eval_samples = 24
    config.final_num_write_steps = (0, 1)
    config.lm.width = 8
    config.lm.num_layers = 1
    if "num_heads" in config.lm:
        config.lm.num_heads = 2
    config.lm.init = "fan_in"
    config.model.num_write_steps = 1
    if "num_memory_tokens" in config.model:
        config.model.num_memory_tokens = 2
    config.data.num_pairs = 2
    config.data.key_length = 1
    config.data.value_length = 1
    config.data.alphabet_size = 8
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 2
    config.update_from_flattened_dict(changes)
    return config


def tiny_plan(method="gradmem", **changes):
    return build(tiny_config(method, **changes))


def random_run(folder, config, scores=(0.0,)):
    """A run that was stopped before its first step, with a checkpoint for each score."""
    folder.mkdir()
    plan = build(config)
    workdir.check_workdir(folder, plan)
    with checkpoint.open_checkpoints(folder / "checkpoints") as checkpoints:
        for step, score in enumerate(scores, 1):
            seeded = dataclasses.replace(plan, seed=plan.seed + step - 1)
            state = init_state(initial_state.start_params(seeded), optax.identity())
            checkpoint.save(checkpoints, step, state, {}, {"score": score})


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
            r"step 4/8 N = 2, K = 1 \| loss \d.* \| exact match \d.* ms/step.* samples/s.* left",
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
        self.assertNotEmpty(list((self.folder / "run" / "tensorboard").glob("events*")))

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

    def test_best_loss_and_speed_of_a_curriculum_that_waits(self):
        losses, away = iter((3.0, 1.0, 2.0)), [0.0]

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
                "num_steps": 6,
                "evaluate_every": 2,
                "best_metric": "read_loss",
                "curriculum.num_pairs": (1, 2),
                "curriculum.exact_match": 1.0,
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
        self.assertEqual(summary["best_step"], 4)
        lines = re.findall(r"step \d/6 (N = \d).* (\d+) ms/step", "\n".join(logs.output))
        self.assertEqual([task for task, _ in lines], ["N = 1"] * 3)
        self.assertLess(max(int(rate) for _, rate in lines), 400_000)

    def test_killed_and_resumed_is_bit_identical(self):
        self.kill_and_resume("adamw")

    @pytest.mark.slow
    def test_killed_and_resumed_with_muon(self):
        self.kill_and_resume("muon")

    def kill_and_resume(self, name):
        config = tiny_config(**{"curriculum.num_pairs": (1, 2), "curriculum.exact_match": 0.0})
        config.optimizer.name = name
        train.train(config, self.folder / "straight")
        # Batch 1 of each start only shows the shapes. Killed after step 6, the checkpoint is of 4.
        ticks = mock.Mock(monotonic=itertools.count(0, 1000).__next__)
        with mock.patch.object(training_run, "time", ticks):
            self.train_and_kill(config, "killed", at_batch=9)
        self.assertEqual(self.params("killed")[0], 4)
        summary = train.train(config, self.folder / "killed")
        self.assertGreater(summary["seconds"], 1000)  # of both starts
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

    def test_stages_share_compiled_steps(self):
        plan = build(tiny_config())
        devices = find_devices(plan)
        steps = self.enterContext(CompiledSteps(plan, devices, initial_state.start_state(plan)))
        with self.assertLogs("experiments", "INFO") as logs:
            for changes in ({}, {}, {"model.num_write_steps": 2}, {"data.num_pairs": 3}, {}):
                RunningStage(build(tiny_config(**changes)), 0, devices, steps)
        self.assertLen(logs.output, 3)

    def test_batches_and_the_order_of_samples(self):
        for shuffle in (False, True):
            config = tiny_config(shuffle=shuffle, **{"data.num_samples": 64})
            plan = build(config)
            stage = RunningStage(plan, 0, find_devices(plan), mock.MagicMock())
            batch, source = stage.next_batch(), target_stage(config).task.source("train")
            self.assertEqual(batch["index"].tolist() == list(range(8)), not shuffle)
            for i, index in enumerate(batch["index"]):
                for name in ("context_ids", "query_ids", "labels", "value_mask"):
                    np.testing.assert_array_equal(batch[name][i], source[index][name])

    def test_what_data_and_optimizer_take_from_the_run(self):
        one, other = (
            target_stage(tiny_config(seed=seed)).task.source("train")[0] for seed in (3, 4)
        )
        self.assertFalse(np.array_equal(one["context_ids"], other["context_ids"]))
        self.assertEqual(build(tiny_config(num_steps=77)).optimizer.num_steps, 77)

    def test_dropout_is_drawn_by_the_seed_of_the_run(self):
        config = tiny_config(
            "rmt",
            **{
                "seed": 3,
                "frozen": ("^lm/",),
                "model.write_lora_rank": 2,
                "model.write_lora_dropout": 0.5,
                "optimizer.warmup_steps": 0,
                "optimizer.weight_decay": 0.0,
            },
        )
        plan = build(config)
        model, devices = plan.target.model, find_devices(plan)
        params = small_params(model)
        state = init_state(params, make_optimizer(plan.optimizer), plan.frozen)
        with CompiledSteps(plan, devices, state) as steps:
            stage = RunningStage(plan, 0, devices, steps)
            after, _ = stage.step(state, stage.next_batch())
        inputs = lambda params: params["write_lora"]["layers_0"]["up"]["a"]
        left_out = np.asarray(inputs(step_params(model, params, 0, 3)) == 0)
        self.assertBetween(left_out.sum(), 1, left_out.size - 1)
        np.testing.assert_array_equal(inputs(after.params) == inputs(params), left_out)

    def test_start_from_another_run(self):
        random_run(self.folder / "first", tiny_config(), scores=(1.0, 0.0))
        config = tiny_config(init_from=str(self.folder / "first"), num_steps=2, evaluate_every=2)
        state = initial_state.start_state(build(config))
        chex.assert_trees_all_equal(state.params, self.params("first", "best")[1])
        self.assertEqual(int(state.step), 0)
        other = tiny_config(**{"init_from": str(self.folder / "first"), "lm.width": 16})
        with self.assertRaisesRegex(
            ValueError, r"\['initial_memory', 'lm', .* do not fit this.* otherwise: lm.width=\d+\."
        ):
            initial_state.start_state(build(other))
        other = tiny_config(**{"init_from": str(self.folder / "first"), "data.alphabet_size": 9})
        with self.assertRaisesRegex(
            ValueError, r"\['lm', 'write_head'\] .* do not fit.* its vocabulary\."
        ):
            initial_state.start_state(build(other))
        adapted = tiny_config(
            **{"init_from": str(self.folder / "first"), "model.write_lora_rank": 2}
        )
        with self.assertLogs("experiments", "INFO") as logs:
            params = initial_state.start_state(build(adapted)).params
        self.assertIn("has no write_lora: they start anew", logs.output[-1])
        chex.assert_trees_all_equal({name: params[name] for name in state.params}, state.params)
        random_run(self.folder / "adapted", adapted)
        less = tiny_config(init_from=str(self.folder / "adapted"))
        with self.assertRaisesRegex(ValueError, r"\['write_lora'\] .* do not fit this"):
            initial_state.start_state(build(less))
        latest = tiny_config(init_from=str(self.folder / "first"), init_checkpoint="latest")
        chex.assert_trees_all_equal(
            initial_state.start_state(build(latest)).params,
            self.params("first", "latest")[1],
        )
        latest.init_checkpoint = "7"
        with self.assertRaisesRegex(ValueError, r"no checkpoint '7'; it has steps \[1, 2\]"):
            initial_state.start_state(build(latest))
        missing = tiny_config(init_from=str(self.folder / "nowhere"))
        with self.assertRaisesRegex(ValueError, "no checkpoints in"):
            initial_state.start_state(build(missing))

        self.assertEqual(train.train(config, self.folder / "second")["steps"], config.num_steps)
        shutil.rmtree(self.folder / "first")  # a run that goes on needs nothing of it
        config.num_steps += 2
        summary = train.train(config, self.folder / "second")
        self.assertEqual(summary["steps"], config.num_steps)

    def test_start_from_the_language_model_of_another_method(self):
        random_run(self.folder / "first", tiny_config("rmt"))
        config = tiny_config(init_from=str(self.folder / "first"))
        params = initial_state.start_state(build(config)).params
        trained = self.params("first", "best")[1]
        chex.assert_trees_all_equal(params["lm"], trained["lm"])
        np.testing.assert_array_equal(params["write_head"], trained["lm"]["head"])
        self.assertIn("initial_memory", params)

    def test_divergence_stops_and_keeps_the_batch(self):
        config = tiny_config(**{"optimizer.learning_rate": 1e38, "optimizer.warmup_steps": 0})
        with self.assertRaisesRegex(NonFiniteError, r"step 2 is not finite") as raised:
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

    def test_workdir_of_another_run_is_refused(self):
        (self.folder / "run").mkdir()
        workdir.check_workdir(self.folder / "run", tiny_plan(**{"lm.width": 16}))
        workdir.check_workdir(self.folder / "run", tiny_plan())  # nothing was trained before
        (self.folder / "run" / "checkpoints" / "4").mkdir(parents=True)
        others = {"num_steps": 80, "mesh.fsdp": 2, "init_checkpoint": "latest", "init_from": "x"}
        others |= {"num_micro_batches": 4, "cpu_devices": 1}
        workdir.check_workdir(self.folder / "run", tiny_plan(**others))
        with self.assertRaisesRegex(ValueError, r"other values of \['lm.width'\]"):
            workdir.check_workdir(self.folder / "run", tiny_plan(**{"lm.width": 16}))
        with self.assertRaisesRegex(ValueError, "num_steps=3 is less than the 4 steps that"):
            workdir.check_workdir(self.folder / "run", tiny_plan(num_steps=3))

    def test_a_run_from_before_a_field_was_there_goes_on_with_its_default(self):
        path = self.folder / "run" / "config.json"
        (path.parent / "checkpoints" / "4").mkdir(parents=True)
        earlier = files.to_json(tiny_config().to_dict())
        del earlier["optimizer"]["name"]
        path.write_text(json.dumps(earlier))
        muon = tiny_plan(**{"optimizer.name": "muon"})
        with self.assertRaisesRegex(ValueError, r"other values of \['optimizer.name'\]"):
            workdir.check_workdir(self.folder / "run", muon)
        workdir.check_workdir(self.folder / "run", tiny_plan())
        self.assertEqual(json.loads(path.read_text())["optimizer"]["name"], "adamw")

    @parameterized.parameters(
        ({"batch_size": 6}, "batch_size=6 must be a multiple of the 8 parts"),
        ({"num_micro_batches": 2}, "8 / 8 samples .* num_micro_batches=2; use fewer"),
        ({"mesh.data": 3}, "mesh data=3 x fsdp=1 x tensor=1 takes 3 devices, there are 8"),
        ({"mesh.tensor": 16}, "8 devices are no multiple of 16"),
        ({"mesh.fsdp": 0}, "mesh.fsdp=0"),
        ({"evaluate_every": 3}, "evaluate_every=3"),
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

    @parameterized.parameters(
        (kv_quick, None),
        (kv_quick, "rmt"),
        (kv_quick, "full_context"),
        (kv_paper, "full_context_n64_k1"),
        (kv_paper, "n96_k5"),
        (kv_paper, "rmt_n32_k3"),
        (kv_paper, "kv_prefix_n8_k2"),
        (kv_paper, "n8_k2_m4"),
        (kv_small, "gradmem_n8_k2_t4"),
        (kv_small, "ttt_linear_n4"),
        (kv_scaling, "n16"),
        (default, None),
    )
    def test_configs_can_be_built(self, module, argument):
        config = module.get_config(argument) if argument else module.get_config()
        self.assertEqual(target_stage(config).task.num_pairs, config.data.num_pairs)

    @parameterized.parameters(
        ("n5_k2", "no gradmem row N=5"),
        ("mamba_n8_k2", "no mamba row N=8, K=2"),
        ("n8_k2_m3", "m=3 is none of"),
        ("mamba_n8_m4", "has no memory tokens"),
        *(
            (text, "must look like")
            for text in ("k2", "n8_k2_", "n8n8", "lstm_n8", "n8_n4", "n8_t2")
        ),
    )
    def test_config_arguments_are_checked(self, argument, message):
        with self.assertRaisesRegex(ValueError, message):
            kv_paper.get_config(argument)

    def test_segments(self):
        summary = self.learn(tiny_config(**{"data.num_segments": 2}))
        by_segment = summary["by_num_write_steps"][1]["exact_match_by_segment"]
        self.assertLen(by_segment, 2)
        self.assertBetween(summary["exact_match"], min(by_segment), max(by_segment))
        lines = (self.folder / "run" / "answers.txt").read_text().splitlines()
        for line in lines[:2]:  # a pair each
            self.assertRegex(line, r"^context  !.:.!\|?$")


def target_stage(config):
    return build(config).target


if __name__ == "__main__":
    absltest.main()
