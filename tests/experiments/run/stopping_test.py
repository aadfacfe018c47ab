"""Runs that are stopped, killed, started twice, or not finite."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import chex
import jax
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from experiments import train
from experiments.run import training_run, workdir
from experiments.run.build import build
from experiments.run.compiled_steps import CompiledSteps
from experiments.run.nonfinite import (
    NonFiniteError,
    load_batch,
    nearest_checkpoint,
    sample_results,
    save_batch,
)
from experiments.run.stage import FIELDS, RunningStage
from experiments.run.stopping import EXIT_STOPPED, Stopped, catch_signals
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.storage import checkpoint
from gradmem_jax.storage.damage import CheckpointError
from gradmem_jax.training.step import init_state, step_params
from tests.experiments.programs_test import start_training
from tests.experiments.tiny_run import target_stage, tiny_config
from tests.programs import start
from tests.small import small_params
from tests.storage.kill_in_save import NUM_EVENTS, TEMPORARY

ROOT = pathlib.Path(__file__).parents[3]
CURRICULUM = {"curriculum.num_pairs": (1, 2), "curriculum.exact_match": 0.0}
FLAGS = {
    "num_steps": 40,
    "evaluate_every": 4,
    "log_every": 4,
    "num_eval_samples": 16,
    "batch_size": 8,
    "lm.num_layers": 1,
    "lm.width": 8,
    "model.num_write_steps": 1,
    "data.num_pairs": 2,
    "data.queries_per_context": 2,
    "optimizer.warmup_steps": 1,
    "final_num_write_steps": "(1,)",
    "curriculum.num_pairs": "(1,2)",
    "curriculum.exact_match": 0.0,
}


def signal_at(call, number=signal.SIGTERM):
    """Sends this process a signal while it fetches that batch, the shapes' ones counted too."""
    calls = []

    def next_batch(stage, original=RunningStage.next_batch):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(stage)

    return mock.patch.object(RunningStage, "next_batch", next_batch)


def signal_in_evaluation():
    def evaluate(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    return mock.patch.object(training_run, "evaluate_params", evaluate)


def start_run(test, folder, name, program=("-m", "experiments.train"), **changes):
    """Starts the program on one device, compiled programs kept between starts."""
    flags = [f"--config.{field}={value}" for field, value in (FLAGS | changes).items()]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return start_training(test, [f"--workdir={folder / name}", *flags], environment, program)


class StoppingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def params(self, name, which="latest"):
        return checkpoint.restore_params(self.folder / name / "checkpoints", which)

    def assert_same_run(self, one, other):
        for which in ("latest", "best"):
            chex.assert_trees_all_equal(self.params(one, which), self.params(other, which))

    def test_the_step_that_a_run_was_stopped_at_may_be_its_last(self):
        config = tiny_config(num_steps=100, save_every=3, log_every=3, evaluate_every=50)
        with signal_at(5), self.assertRaises(Stopped):
            train.train(config, self.folder / "run")
        step, _ = self.params("run")
        config.num_steps = step
        with mock.patch.object(training_run, "RunningStage") as stage:  # which compiles
            summary = train.train(config, self.folder / "run")
        stage.assert_not_called()
        self.assertEqual((summary["steps"], summary["best_step"]), (step, step))
        evaluate = training_run.evaluate_params
        with mock.patch.object(training_run, "evaluate_params", wraps=evaluate) as evaluated:
            train.train(config, self.folder / "run")
        evaluated.assert_not_called()
        config.num_steps = step + 3
        for name in ("run", "straight"):
            train.train(config, self.folder / name)
        self.assert_same_run("run", "straight")

    def test_signals_in_a_window_in_an_evaluation_and_in_a_later_stage(self):
        config = tiny_config(log_every=4, **CURRICULUM)
        with self.assertLogs("experiments", "INFO") as straight:
            summary = train.train(config, self.folder / "straight")
        stops = ((signal_at(3), 2), (signal_in_evaluation(), 4), (signal_at(3), 6))
        handler = signal.getsignal(signal.SIGINT)
        with self.assertLogs("experiments", "INFO") as stopped:
            for stop, step in stops:
                with stop, self.assertRaises(Stopped):
                    train.train(config, self.folder / "stopped")
                self.assertEqual(self.params("stopped")[0], step)
            again = train.train(config, self.folder / "stopped")
        self.assertEqual(again["by_num_write_steps"], summary["by_num_write_steps"])
        self.assert_same_run("straight", "stopped")
        # The means of a window are over its steps before the stop too.
        lines = lambda logs: re.findall(r"step \d/8 .* write loss [\d.]+", "\n".join(logs.output))
        self.assertLen(lines(straight), 2)
        self.assertEqual(lines(straight), lines(stopped))
        self.assertEqual(signal.getsignal(signal.SIGINT), handler)

    def test_a_closed_terminal_stops_as_a_signal_does_but_not_under_nohup(self):
        number = signal.SIGHUP
        self.addCleanup(signal.signal, number, signal.signal(number, signal.SIG_DFL))
        with catch_signals() as stopping, mock.patch.object(os, "write", side_effect=OSError):
            os.kill(os.getpid(), number)
            with self.assertRaisesRegex(Stopped, "SIGHUP"):
                stopping.check()
        signal.signal(number, signal.SIG_IGN)
        with catch_signals() as stopping:
            os.kill(os.getpid(), number)
            stopping.check()
        self.assertIs(signal.getsignal(number), signal.SIG_IGN)

    @parameterized.parameters("moved", "replaced")
    def test_a_run_whose_folder_goes_stops_and_makes_no_new_one(self, how):
        run, moved = self.folder / "run", self.folder / "moved"
        calls = []

        def next_batch(stage, original=RunningStage.next_batch):
            calls.append(None)
            if len(calls) == 4:
                run.rename(moved)
                if how == "replaced":
                    run.mkdir()
            return original(stage)

        with (
            mock.patch.object(RunningStage, "next_batch", next_batch),
            self.assertRaisesRegex(CheckpointError, "run is not the folder any more .* Put it ba"),
        ):
            train.train(tiny_config(), run)
        self.assertLess(len(calls), 8)
        self.assertEqual(run.exists(), how != "moved")
        if how == "replaced":
            self.assertEmpty(list(run.iterdir()))

    @parameterized.parameters((0.0, False), (1.1, True))
    def test_second_signal_ends_at_once(self, pause, ends):
        code = (
            "import os, signal, time\nfrom experiments.run.stopping import *\n"
            "with catch_signals() as stopping:\n"
            " os.kill(os.getpid(), signal.SIGINT)\n"
            f" time.sleep({pause})\n"
            " os.kill(os.getpid(), signal.SIGTERM)\n"
            " try: stopping.check()\n"
            " except Stopped as stopped: print('stopped by', stopped)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        self.assertEqual(done.returncode, -signal.SIGTERM if ends else 0, done.stderr)
        self.assertEqual(done.stdout, "" if ends else "stopped by SIGINT\n")
        self.assertEqual(done.stderr.count("again to end now"), 1)

    def start(self, name, **options):
        return start_run(self, self.folder, name, **options)

    def read_until(self, process, text):
        seen = ""
        for line in process.stdout:
            seen += line
            if text in line:
                return seen
        raise AssertionError(f"{text!r} does not come:\n{seen}")

    def test_program_says_how_to_go_on_and_refuses_a_second_one(self):
        first = self.start("run", num_steps=100_000)
        self.read_until(first, "step 4/")
        out, _ = self.start("run", num_steps=100_000).communicate()
        self.assertIn(f"is being trained by process {first.pid} on ", out)
        first.send_signal(signal.SIGTERM)
        out, _ = first.communicate()
        self.assertEqual(first.returncode, EXIT_STOPPED, out)
        self.assertIn("stopped by SIGTERM; the same command goes on from here", out)
        step, _ = self.params("run")
        again = self.start("run", num_steps=100_000)
        self.read_until(again, f"going on from step {step}")

    def kill_and_resume(self, times):
        straight = self.start("straight")
        self.read_until(straight, "compiled in")
        started = time.monotonic()
        self.assertEqual(straight.wait(), 0)
        seconds = time.monotonic() - started
        draw = random.Random(0)
        for _ in range(times):
            process = self.start("killed")
            self.read_until(process, "compiled in")
            time.sleep(draw.uniform(0, seconds / 4))
            process.kill()
            process.wait()
        last = self.start("killed")
        out, _ = last.communicate()
        self.assertEqual(last.returncode, 0, out)
        self.assertEqual(self.params("killed")[0], 40)
        self.assert_same_run("straight", "killed")

    @pytest.mark.slow
    def test_killed_at_random_moments(self):
        self.kill_and_resume(2)

    @pytest.mark.slow
    def test_killed_at_twenty_random_moments(self):
        self.kill_and_resume(20)

    @pytest.mark.slow
    def test_killed_inside_a_save(self):
        self.assertEqual(self.start("straight").wait(), 0)
        folder = self.folder / "killed" / "checkpoints"
        unfinished, saved = 0, None
        for step, depth in ((8, 2), (12, 7), (16, 13), (20, 21), (24, 30), (28, 99), (36, 31)):
            code = (
                "import runpy\nfrom tests.storage.kill_in_save import kill_in_save\n"
                f"kill_in_save({str(folder)!r}, {step}, {depth})\n"
                "runpy.run_module('experiments.train', run_name='__main__', alter_sys=True)"
            )
            process = self.start("killed", program=("-c", code))
            out, _ = process.communicate()
            self.assertEqual(process.returncode, -signal.SIGKILL, out)
            self.assertEqual("going on from" in out, saved is not None, out)
            if saved is not None:
                self.assertIn(f"going on from step {saved}\n", out)
                self.assertNotIn("damaged", out)
            names = [path.name for path in folder.iterdir()]
            unfinished += f"{step}{TEMPORARY}" in names
            saved = step if depth > NUM_EVENTS else step - 4
            self.assertIn(str(saved), names)
            self.assertEqual(self.params("killed")[0], saved)
        self.assertEqual(unfinished, 6)
        last = self.start("killed")
        out, _ = last.communicate()
        self.assertEqual(last.returncode, 0, out)
        self.assert_same_run("straight", "killed")
        self.assertFalse(list(folder.glob(f"*{TEMPORARY}")))

    def test_steps_that_are_not_finite_are_skipped_and_counted(self):
        before = {}  # states by step

        def step(stage, state, batch, original=RunningStage.step):
            number = int(state.step) + 1
            copies = jax.tree.map(np.array, state)  # the step takes over the state's buffers
            before[number] = copies
            if number not in (2, 3, 7):
                return original(stage, state, batch)
            poisoned = jax.tree.map(lambda x: np.full_like(x, np.nan), copies.params)
            replicated = state.step.sharding
            _, metrics = original(
                stage, jax.device_put(copies._replace(params=poisoned), replicated), batch
            )
            return state._replace(step=jax.device_put(copies.step + 1, replicated)), metrics

        config = tiny_config(skip_nonfinite=2)
        with (
            mock.patch.object(RunningStage, "step", step),
            self.assertRaisesRegex(NonFiniteError, r"step 7 .*more than skip_nonfinite=2"),
        ):
            train.train(config, self.folder / "run")
        _, params = self.params("run")
        self.assertTrue(all(np.isfinite(x).all() for x in jax.tree.leaves(params)))
        chex.assert_trees_all_equal(before[4].params, before[2].params)
        config.skip_nonfinite = 3
        with mock.patch.object(RunningStage, "step", step):
            summary = train.train(config, self.folder / "run")
        self.assertEqual(summary["skipped_steps"], 3)
        written = json.loads((self.folder / "run" / "metrics.json").read_text())
        self.assertEqual(written["skipped_steps"], 3)

        batch = load_batch(self.folder / "run" / "nonfinite_step_3.npz")
        model = target_stage(config).model
        results = list(sample_results(model, params, batch))
        self.assertEqual([result.sample for result in results], batch["index"].tolist())
        self.assertTrue(np.isfinite([result[1:] for result in results]).all())

    def test_files_that_are_no_batch(self):
        for content in (b"", b"PK", b"PK\x03\x04", b"a story", b"\x93NUMPY"):
            (self.folder / "other.npz").write_bytes(content)
            with self.assertRaisesRegex(ValueError, "other.npz is no batch of a run"):
                load_batch(self.folder / "other.npz")
        np.save(self.folder / "array.npy", np.zeros(3))
        with self.assertRaisesRegex(ValueError, "array.npy is no batch of a run"):
            load_batch(self.folder / "array.npy")
        with self.assertRaisesRegex(ValueError, "none.npz is not a file"):
            load_batch(self.folder / "none.npz")

    def test_rerun_computes_the_step_again(self):
        adapters = {"write_lora_rank": 2, "write_lora_dropout": 0.5, "write_lora_alpha": 64.0}
        changes = {f"model.{name}": value for name, value in adapters.items()}
        config = tiny_config("rmt", seed=3, **changes)
        plan, run = build(config), self.folder / "run"
        model = plan.model_with(num_write_steps=2)
        run.mkdir()
        workdir.check_workdir(run, plan)
        params = small_params(model)
        with checkpoint.open_checkpoints(run / "checkpoints") as checkpoints:
            state = init_state(params, optax.identity())
            checkpoint.save(checkpoints, 4, state, {}, {"score": 0.0})
        task = target_stage(config).task
        batch = next(make_iterator(task.source("train"), 2, task=task))
        fields = {name: batch[name] for name in (*FIELDS, "index")}
        path = save_batch(run, fields, step=6, num_write_steps=2)
        done = start("rerun", f"--workdir={run}", f"--batch={path}", devices=1)
        self.assertIn("batch of step 6, K = 2; parameters of step 4", done.stdout)
        used = step_params(model, params, 5, seed=3)
        for sample, loss, norm in sample_results(model, used, load_batch(path)):
            line = f"sample {sample} | loss {loss:.4f} | gradient norm {norm:.4f}\n"
            self.assertIn(line, done.stdout)

    def test_no_pickle(self):
        files = [path for name in ("gradmem_jax", "experiments") for path in ROOT.glob(name)]
        texts = {path: path.read_text() for folder in files for path in folder.rglob("*.py")}
        self.assertNotEmpty(texts)
        for path, text in texts.items():
            self.assertNotRegex(text, r"import pickle|pickle\.|allow_pickle=True|joblib", path)
            for call in re.findall(r"np\.load\(.*", text):
                self.assertIn("allow_pickle=False", call, path)

    def test_checkpoint_nearest_to_a_step(self):
        with self.assertRaisesRegex(ValueError, "has no checkpoint; train"):
            nearest_checkpoint(self.folder / "checkpoints", 49)
        for name in ("50", "100", "150", "7.orbax-checkpoint-tmp"):
            (self.folder / "checkpoints" / name).mkdir(parents=True)
        nearest = lambda step: nearest_checkpoint(self.folder / "checkpoints", step)
        self.assertEqual(
            [nearest(step) for step in (1, 50, 75, 76, 999)], ["50", "50", "50", "100", "150"]
        )

    def test_a_signal_while_the_first_step_is_compiled(self):
        free = threading.Event()
        self.addCleanup(free.set)
        with (
            signal_at(1),
            mock.patch.object(CompiledSteps, "_compile", lambda *_: free.wait()),
            mock.patch.object(os, "write") as write,
            self.assertRaises(Stopped),
        ):
            train.train(tiny_config(), self.folder / "run")
        write.assert_called_with(2, b"SIGTERM: stopping; nothing to save yet; again to end now\n")
        self.assertEmpty(list((self.folder / "run" / "checkpoints").iterdir()))


if __name__ == "__main__":
    absltest.main()
