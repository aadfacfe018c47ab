"""Runs of a sweep: their order, chains, locks and failures."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.program import locks
from experiments.sweeps import runner, sweep_file
from experiments.sweeps.run_list import Run, chain
from tests.programs import ROOT


def stub(rates=None, fail=()):
    """Replaces training by a process that writes metrics.json, or fails."""

    def command(run, root):
        rate = (rates or {}).get(run.name, 0.5)
        path = str(root / run.name / "metrics.json")
        code = (
            f"print('line of {run.name}'); open({path!r}, 'w').write('{{\"exact_match\": {rate}}}')"
        )
        if run.name in fail:
            code = "print('first'); raise SystemExit(f'{6 * 7} is wrong')"
        return [sys.executable, "-c", code]

    return mock.patch.object(runner, "command", command)


class RunnerTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path) / "runs"

    def run_all(self, runs, **stubbed):
        with stub(**stubbed), self.assertLogs("experiments", "INFO") as logs:
            failed = runner.run_all(runs, self.root)
        return failed, "\n".join(record.getMessage() for record in logs.records)

    def started(self):
        return sorted(path.parent.name for path in self.root.glob("*/train.log"))

    def test_command(self):
        run = Run("b", "c.py:n8", {"seed": 1, "curriculum.num_pairs": ()}, after="a")
        self.assertEqual(
            runner.command(run, pathlib.Path("runs/x"))[1:],
            [
                *("-m", "experiments.train", "--workdir=runs/x/b", "--config=c.py:n8"),
                *("--config.seed=1", "--config.curriculum.num_pairs=()"),
                "--config.init_from=runs/x/a",
            ],
        )

    def test_paths_from_another_folder(self):
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(self.create_tempdir().full_path)
        runs = sweep_file.load_runs("experiments/sweeps/kv_small.py")
        words = runner.command(runs[0], self.root)
        config = str(ROOT / runs[0].config)
        self.assertIn(f"--config={config}", words)
        pathlib.Path("experiments/configs").mkdir(parents=True)
        pathlib.Path("experiments/configs/kv_small.py").touch()
        self.assertIn(f"--config={runs[0].config}", runner.command(runs[0], self.root))

    @parameterized.parameters(
        ({}, "exact match 50.0%", 0.4, 0.6),
        ({"best_metric": "token_accuracy"}, "token accuracy 70.0%", 0.6, 0.8),
        ({"best_metric": "read_loss"}, "read loss 2.000", 3.0, 1.0),
    )
    def test_results_are_of_the_best_metric(self, more, text, reached, missed):
        self.root.mkdir()
        metrics = {"exact_match": 0.5, "token_accuracy": 0.7, "read_loss": 2.0} | more
        (self.root / "metrics.json").write_text(json.dumps(metrics))
        result = runner.finished(self.root)
        self.assertEqual(str(result), text)
        self.assertEqual([result.reached(bar) for bar in (reached, missed)], [True, False])

    def test_order_progress_and_resume(self):
        runs = chain([Run("a", "c"), Run("b", "c"), Run("d", "c")])
        failed, text = self.run_all(runs[:2], rates={"b": 0.968})
        self.assertEqual(failed, [])
        self.assertRegex(text, r"1/2 a \| exact match 50.0% \| 0:0\d \| left about 0:0\d\n")
        self.assertRegex(text, r"2/2 b \| exact match 96.8% \| 0:0\d \| left about 0:00\n")
        self.assertLess(text.index("1/2 a | exact"), text.index("2/2 b | starts"))
        self.assertIn("line of a", (self.root / "a" / "train.log").read_text())

        _, text = self.run_all(runs)
        self.assertIn("2/3 b | finished before, exact match 96.8%", text)
        self.assertIn("3/3 d | starts", text)
        self.assertEqual((self.root / "a" / "train.log").read_text().count("\nline of a\n"), 1)

    def test_time_left_is_that_of_the_runs_to_come(self):
        runs = [Run(name, "c") for name in "abde"]
        self.run_all([runs[1]])
        clock = mock.Mock(monotonic=mock.Mock(side_effect=[0, 60, 100, 280, 300, 300]))
        with mock.patch.object(runner, "time", clock):
            _, text = self.run_all(runs)
        self.assertIn("1/4 a | exact match 50.0% | 1:00 | left about 2:00\n", text)
        self.assertIn("3/4 d | exact match 50.0% | 3:00 | left about 2:00\n", text)
        self.assertIn("4/4 e | exact match 50.0% | 0:00 | left about 0:00\n", text)

    def test_unfinished_run_is_started_again_and_the_log_grows(self):
        runs = [Run("a", "c")]
        self.run_all(runs)
        (self.root / "a" / "metrics.json").write_text('{"exact')
        _, text = self.run_all(runs)
        self.assertIn("is damaged", text)
        self.assertEqual((self.root / "a" / "train.log").read_text().count("\nline of a\n"), 2)

    def test_a_run_that_was_trained_on_is_started_again(self):
        runs = [Run("a", "c")]
        self.run_all(runs)
        metrics = self.root / "a" / "metrics.json"
        metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"steps": 6}))
        for step, log in ((6, "finished before"), (8, "starts")):
            (self.root / "a" / "checkpoints" / str(step)).mkdir(parents=True)
            self.assertIn(f"1/1 a | {log}", self.run_all(runs)[1])

    def test_failure_ends_its_chain_only(self):
        runs = chain([Run("a", "c"), Run("b", "c"), Run("d", "c")]) + [Run("e", "c")]
        failed, text = self.run_all(runs, fail=("a",))
        self.assertEqual(failed, ["a"])
        self.assertEqual(self.started(), ["a", "e"])
        self.assertRegex(text, r"1/4 a \| failed with exit status 1; .*train.log ends with\n")
        self.assertIn("first\n42 is wrong", text)
        self.assertIn("2/4 b | skipped: it starts from a, which is not finished", text)
        self.assertIn("3/4 d | skipped: it starts from b, which is not finished", text)
        self.assertIn("1 of 4 runs are finished\nnot finished: a, b, d", text)

    def test_success_without_metrics_is_a_failure(self):
        with mock.patch.object(runner, "command", lambda run, root: [sys.executable, "-c", ""]):
            self.assertEqual(runner.run_all([Run("a", "c")], self.root), ["a"])

    @parameterized.parameters((0.49, ["a"]), (0.5, ["a", "b", "d"]))
    def test_chain_stops_below(self, rate, expected):
        runs = chain([Run("a", "c"), Run("b", "c"), Run("d", "c")], stop_below=0.5)
        failed, text = self.run_all(runs, rates={"a": rate})
        self.assertEqual(failed, [])
        self.assertEqual(self.started(), expected)
        said = "b | skipped: a has exact match 49.0%; to go on it takes exact match 50.0%"
        self.assertEqual(said in text, rate < 0.5)

    @parameterized.parameters(("read_loss", 0.2, 0.3), ("token_accuracy", 0.9, 0.8))
    def test_a_chain_goes_on_when_its_metric_is_good_enough(self, metric, good, bad):
        result = runner.Result(metric, 0.25 if metric == "read_loss" else 0.85)
        self.assertFalse(result.reached(good))
        self.assertTrue(result.reached(bad))

    def test_run_of_another_worker_is_left_alone(self):
        runs = chain([Run("a", "c"), Run("b", "c")]) + [Run("d", "c")]
        with locks.hold(self.root / "a" / runner.LOCK) as held:
            self.assertIsNotNone(held)
            failed, text = self.run_all(runs)
        self.assertEqual(failed, [])
        self.assertIn("1/3 a | skipped: another worker is training it", text)
        self.assertEqual(self.started(), ["d"])
        self.run_all(runs)
        self.assertEqual(self.started(), ["a", "b", "d"])

    def test_run_that_a_killed_sweep_has_left_is_waited_for(self):
        held = self.enterContext(contextlib.ExitStack())
        lock = self.root / "a" / runner.LOCK
        held.enter_context(locks.hold(lock))
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
        text = lock.read_text().replace(str(os.getpid()), dead.stdout.decode().strip())
        lock.write_text(text)
        wait = mock.Mock(side_effect=lambda _: held.close())
        with mock.patch.object(runner.time, "sleep", wait):
            _, text = self.run_all([Run("a", "c")])
        wait.assert_called_once()
        self.assertIn("1/1 a | is trained since a sweep that was killed; waiting", text)
        self.assertIn("1/1 a | exact match 50.0%", text)

    def test_run_that_finished_before_the_lock_came_is_not_trained_again(self):
        answers = iter(["", "finished before"])
        with mock.patch.object(runner, "why_not", lambda *_: next(answers)):
            self.run_all([Run("a", "c")])
        self.assertEqual(self.started(), [])


if __name__ == "__main__":
    absltest.main()
