"""Two real processes on this machine train one model together."""

import os
import pathlib
import re
import shutil
import signal
import socket
from unittest import mock

import chex
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import train
from experiments.program import files, hosts
from experiments.run.nonfinite import save_batch
from experiments.run.stopping import EXIT_STOPPED, Stopped, catch_signals
from gradmem_jax.storage import checkpoint
from tests.experiments.programs_test import start_training
from tests.experiments.tiny_run import tiny_config

ROOT = pathlib.Path(__file__).parents[3]
# In the processes and, beside them, in this one. 13 samples are not a multiple of anything.
CHANGES = {"num_steps": 6, "evaluate_every": 3, "log_every": 3, "num_eval_samples": 13}
FLAGS = CHANGES | {
    "batch_size": 8,
    "lm.width": 8,
    "lm.num_layers": 1,
    "lm.num_heads": 2,
    "lm.init": "fan_in",
    "model.num_write_steps": 1,
    "model.num_memory_tokens": 2,
    "data.num_pairs": 2,
    "data.key_length": 1,
    "data.value_length": 1,
    "data.alphabet_size": 8,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 2,
    "final_num_write_steps": "(0,1)",
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class ProcessesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def start(self, name, **changes):
        """Starts two processes with a device each."""
        fields = [f"--config.{field}={value}" for field, value in (FLAGS | changes).items()]
        arguments = [f"--workdir={self.folder / name}"]
        arguments += ["--config=experiments/configs/default.py", *fields]
        environment = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
            "JAX_NUM_PROCESSES": "2",
        }
        return [
            start_training(self, [f"--process_id={i}", *arguments], environment) for i in range(2)
        ]

    def finish(self, processes, code):
        outputs = [process.communicate()[0] for process in processes]
        codes = [process.returncode for process in processes]
        self.assertEqual(codes, [code] * len(codes), "\n=====\n".join(outputs))
        return outputs

    def params(self, name):
        return checkpoint.restore_params(self.folder / name / "checkpoints", "latest")

    def test_two_processes_match_one(self):
        first, second = self.finish(self.start("two", **{"mesh.fsdp": 2}), code=0)
        summary = train.train(tiny_config(**CHANGES), self.folder / "one")
        chex.assert_trees_all_close(self.params("two"), self.params("one"), rtol=1e-4, atol=1e-5)
        self.assertIn("answers from memory alone", first)
        self.assertNotIn("step 3/6", second)
        lines = re.findall(r"step (\d)/6 .* loss (\d+\.\d+) \|", first)
        self.assertEqual([step for step, _ in lines], ["3", "6"])
        written = files.read_json(self.folder / "two" / "metrics.json")
        self.assertEqual(written["best_step"], summary["best_step"])
        for k, results in summary["by_num_write_steps"].items():
            got = written["by_num_write_steps"][str(k)]
            np.testing.assert_allclose(got["read_loss"], results["read_loss"], rtol=1e-4)
            self.assertEqual(got["num_samples"], 13)

    @pytest.mark.slow
    def test_a_signal_to_one_stops_both_and_one_process_goes_on(self):
        straight = tiny_config(**CHANGES, shuffle=True)
        train.train(straight, self.folder / "straight")
        # More steps than can be done before the signal, and never an evaluation on the way.
        endless = {"num_steps": 10**6, "evaluate_every": 3 * 10**5, "shuffle": True}
        processes = self.start("stopped", **endless)
        for line in processes[0].stdout:
            if "step 3/" in line:
                break
        processes[1].send_signal(signal.SIGTERM)
        first, _ = self.finish(processes, EXIT_STOPPED)
        self.assertIn("stopped by a signal to another process; the same command goes on", first)
        step, params = self.params("stopped")
        self.assertEqual(step % 3, 0)
        longer = dict(CHANGES, num_steps=step, evaluate_every=step)
        train.train(tiny_config(**longer, shuffle=True), self.folder / "same")
        chex.assert_trees_all_close(params, self.params("same")[1], rtol=1e-2, atol=1e-2)
        config = tiny_config(**CHANGES, shuffle=True)
        config.num_steps, config.evaluate_every = step + 3, 3 * 10**5
        config.mesh.fsdp = 4
        with self.assertLogs("experiments", "INFO") as logs:
            train.train(config, self.folder / "stopped")
        self.assertIn(f"going on from step {step}", "\n".join(logs.output))
        self.assertEqual(self.params("stopped")[0], step + 3)

    @pytest.mark.slow
    def test_a_damaged_checkpoint_and_a_run_to_start_from(self):
        config = tiny_config(**CHANGES)
        train.train(config, self.folder / "one")
        shutil.copytree(self.folder / "one", self.folder / "two")
        newest = self.folder / "two" / "checkpoints" / "6"
        for path in newest.rglob("manifest.ocdbt"):
            path.write_bytes(path.read_bytes()[:50])
        first, second = self.finish(self.start("two", num_steps=9), code=0)
        self.assertIn("going on from step 3\n", first)
        for out in (first, second):
            self.assertIn("checkpoint of step 6 is damaged and set aside", out)
        self.assertTrue((self.folder / "two" / "checkpoints.damaged" / "6").is_dir())
        config.num_steps = 9
        train.train(config, self.folder / "one")
        chex.assert_trees_all_close(self.params("two"), self.params("one"), rtol=1e-4, atol=1e-5)

        started = {"init_from": self.folder / "one", "num_steps": 3}
        first, _ = self.finish(self.start("next", **started), code=0)
        self.assertRegex(first, r"starting from step \d of .*one")
        config.init_from, config.num_steps = str(self.folder / "one"), 3
        train.train(config, self.folder / "same")
        chex.assert_trees_all_close(self.params("next"), self.params("same"), rtol=1e-4, atol=1e-5)


class AgreementTest(parameterized.TestCase):
    def test_all_stop_when_one_has_a_signal(self):
        with catch_signals(lambda stop: stop) as stopping, stopping.interruptible():
            pass
        with (
            catch_signals(lambda _: 1) as stopping,
            self.assertRaisesRegex(Stopped, "a signal to another process"),
        ):
            stopping.check()

    def test_none_leaves_an_evaluation_alone(self):
        reached = []
        with (
            self.assertRaisesRegex(Stopped, "SIGTERM"),
            catch_signals(lambda stop: stop) as stopping,
            stopping.interruptible(),
        ):
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(True)
        self.assertLen(reached, 1)

    def test_alone_nothing_is_asked(self):
        self.assertTrue(hosts.is_first())
        self.assertEqual((hosts.largest(3), hosts.from_first(4)), (3, 4))

    def test_each_process_keeps_its_part_of_a_batch_that_is_not_finite(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        with (
            mock.patch.object(jax, "process_count", return_value=2),
            mock.patch.object(jax, "process_index", return_value=1),
        ):
            path = save_batch(folder, {"index": np.arange(2)}, 7, 1)
        self.assertEqual(path.name, "nonfinite_step_7_process_1.npz")


class ConnectTest(parameterized.TestCase):
    def connect(self, environment=(), **values):
        with (
            mock.patch.dict(os.environ, dict(environment)),
            mock.patch.object(jax.distributed, "initialize") as initialize,
            mock.patch.object(jax.config, "update"),
        ):
            hosts.connect(**{"distributed": False, **values})
        return initialize

    def test_alone(self):
        self.connect().assert_not_called()

    def test_flags_and_environment(self):
        environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4"}
        environment["JAX_PROCESS_ID"] = "2"
        self.connect(environment).assert_called_once_with("a:1", 4, 2)
        called = self.connect(environment, process_id=0)
        called.assert_called_once_with("a:1", 4, 0)
        self.connect(distributed=True).assert_called_once_with(None, None, None)

    @parameterized.parameters(
        (dict(num_processes=2), {}, "--coordinator_address and --process_id must be set too"),
        (dict(coordinator_address="a:1", num_processes=2, process_id=2), {}, "--process_id=2"),
        (dict(coordinator_address="a", num_processes=2, process_id=0), {}, "must be host:port"),
        ({}, {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two'"),
    )
    def test_refusals(self, values, environment, message):
        with self.assertRaisesRegex(ValueError, message):
            self.connect(environment, **values)

    def test_a_cluster_that_jax_does_not_find(self):
        failure = mock.Mock(side_effect=ValueError("coordinator_address should be defined."))
        with (
            mock.patch.object(jax.distributed, "initialize", failure),
            self.assertRaisesRegex(ValueError, "cannot be joined: coord.* leave --distributed out"),
        ):
            hosts.connect(distributed=True)


if __name__ == "__main__":
    absltest.main()
