"""The sweep program: chains, workers, locks, failures, refusals, and one real run."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from experiments import sweep
from experiments.program import locks
from experiments.sweeps.run_list import Run, chain, seeds
from tests.shared_data import data_dir

ROOT = pathlib.Path(__file__).parents[2]
SWEEPS = sorted(
    path.name
    for path in (ROOT / "experiments/sweeps").glob("[!_]*.py")
    if path.name != "run_list.py"  # what sweeps are made of
)
CONFIG = str(ROOT / "experiments/configs/kv_quick.py")
WORKER = "from experiments import sweep; from absl import app; {stub}; app.run(sweep.main)"
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

    return mock.patch.object(sweep, "command", command)


def names(runs):
    return [run.name for run in runs]


class SweepTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path) / "runs"

    def run_all(self, runs, **stubbed):
        with stub(**stubbed), self.assertLogs("experiments", "INFO") as logs:
            failed = sweep.run_all(runs, self.root)
        return failed, "\n".join(record.getMessage() for record in logs.records)

    def started(self):
        return sorted(path.parent.name for path in self.root.glob("*/train.log"))

    def sweep_file(self, text):
        return self.create_tempfile("sweep_file.py", textwrap.dedent(text)).full_path

    def test_helpers(self):
        runs = seeds(chain([Run("a", "c"), Run("b", "c", {"x": 1})], stop_below=0.5), (3, 4))
        self.assertEqual(
            runs,
            [
                Run("a_seed3", "c", {"seed": 3}),
                Run("b_seed3", "c", {"x": 1, "seed": 3}, "a_seed3", 0.5),
                Run("a_seed4", "c", {"seed": 4}),
                Run("b_seed4", "c", {"x": 1, "seed": 4}, "a_seed4", 0.5),
            ],
        )
        self.assertEqual(chain([]), [])

    def test_command(self):
        run = Run("b", "c.py:n8", {"seed": 1, "curriculum.num_pairs": ()}, after="a")
        self.assertEqual(
            sweep.command(run, pathlib.Path("runs/x"))[1:],
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
        runs = sweep.load_runs("experiments/sweeps/kv_small.py")
        words = sweep.command(runs[0], self.root)
        config = str(ROOT / runs[0].config)
        self.assertIn(f"--config={config}", words)
        pathlib.Path("experiments/configs").mkdir(parents=True)
        pathlib.Path("experiments/configs/kv_small.py").touch()
        self.assertIn(f"--config={runs[0].config}", sweep.command(runs[0], self.root))

    @parameterized.parameters(1, 2, 3, 7)
    def test_workers_share_all_runs_and_keep_chains_whole(self, count):
        runs = seeds(chain([Run("a", "c"), Run("b", "c"), Run("c", "c")]), range(3))
        runs += [Run("d", "c"), Run("e", "c", after="b_seed1")]
        parts = [names(sweep.select(runs, i, count)) for i in range(count)]
        self.assertCountEqual(sum(parts, []), names(runs))
        for part in parts:
            for run in runs:
                if run.after and run.name in part:
                    self.assertLess(part.index(run.after), part.index(run.name))
        if count == 3:
            self.assertEqual([len(part) for part in parts], [4, 4, 3])

    def test_only(self):
        runs = seeds(chain([Run("a", "c"), Run("b", "c")]), range(4))
        parts = [names(sweep.select(runs, i, 2, only="^b_seed[123]")) for i in range(2)]
        self.assertEqual(parts, [["b_seed1", "b_seed3"], ["b_seed2"]])

    def test_a_lock_names_its_holder_only(self):
        path = self.root / "lock"
        path.parent.mkdir()
        path.write_text("process 1234567890 on a host of a long name\n")
        with locks.hold(path):
            name = f"process {os.getpid()} on {socket.gethostname()}"
            self.assertEqual(locks.holder(path), name)

    @parameterized.parameters(
        ({}, "exact match 50.0%", 0.4, 0.6),
        ({"best_metric": "token_accuracy"}, "token accuracy 70.0%", 0.6, 0.8),
        ({"best_metric": "read_loss"}, "read loss 2.000", 3.0, 1.0),
    )
    def test_results_are_of_the_best_metric(self, more, text, reached, missed):
        self.root.mkdir()
        metrics = {"exact_match": 0.5, "token_accuracy": 0.7, "read_loss": 2.0} | more
        (self.root / "metrics.json").write_text(json.dumps(metrics))
        result = sweep.finished(self.root)
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
        with mock.patch.object(sweep, "time", clock):
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
        with mock.patch.object(sweep, "command", lambda run, root: [sys.executable, "-c", ""]):
            self.assertEqual(sweep.run_all([Run("a", "c")], self.root), ["a"])

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
        result = sweep.Result(metric, 0.25 if metric == "read_loss" else 0.85)
        self.assertFalse(result.reached(good))
        self.assertTrue(result.reached(bad))

    def test_run_of_another_worker_is_left_alone(self):
        runs = chain([Run("a", "c"), Run("b", "c")]) + [Run("d", "c")]
        with locks.hold(self.root / "a" / sweep.LOCK) as held:
            self.assertIsNotNone(held)
            failed, text = self.run_all(runs)
        self.assertEqual(failed, [])
        self.assertIn("1/3 a | skipped: another worker is training it", text)
        self.assertEqual(self.started(), ["d"])
        self.run_all(runs)
        self.assertEqual(self.started(), ["a", "b", "d"])

    def test_run_that_finished_before_the_lock_came_is_not_trained_again(self):
        answers = iter(["", "finished before"])
        with mock.patch.object(sweep, "why_not", lambda *_: next(answers)):
            self.run_all([Run("a", "c")])
        self.assertEqual(self.started(), [])

    def start_sleeping_worker(self):
        """Starts the program with a training that sleeps; returns it and the child's id."""
        path = self.sweep_file(
            f"""
            from experiments.sweeps.run_list import Run
            def get_runs(): return [Run("a", {CONFIG!r})]
            """
        )
        child = "import os, time; print(os.getpid(), 'sleeps', flush=True); time.sleep(100)"
        replace = f"sweep.command = lambda run, root: [{sys.executable!r}, '-c', {child!r}]"
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
        with locks.hold(self.root / "a" / sweep.LOCK) as held:
            self.assertIsNone(held)
        os.kill(pid, signal.SIGKILL)
        for _ in range(100):
            with locks.hold(self.root / "a" / sweep.LOCK) as held:
                if held:
                    return
            time.sleep(0.1)
        self.fail("the lock is still held")

    @parameterized.parameters(
        ("", r"has no get_runs\(\)"),
        ("def get_runs(): return []", "at least one"),
        ("def get_runs(): return ['a']", "list of at least one experiments.sweep.Run"),
        ("def get_runs(): return [Run('a', C), Run('a', C)]", "two runs are named 'a'"),
        ("def get_runs(): return [Run('../a', C)]", "run name '../a' is not a folder"),
        ("def get_runs(): return [Run('a', C, after='b')]", "'a' comes after 'b'"),
        ("def get_runs(): return [Run('a', C, after='a')]", "'a' comes after 'a'"),
        (
            "def get_runs(): return [Run('a', C, after='b'), Run('b', C)]",
            "'a' comes after 'b', which is no run listed before it",
        ),
        ("def get_runs(): return [Run('a', 'nowhere.py')]", "config 'nowhere.py' is not a file"),
        ("def get_runs(): return [Run('a', C + ':lstm')]", "run 'a' cannot be configured"),
        ("def get_runs(): return [Run('a', C, {'sede': 1})]", "'a' cannot be .*sede"),
        ("def get_runs(): return [Run('a', C, {'seed': 'x'})]", "'a' cannot be .*seed"),
        ("def get_runs(): return [Run('a', C, {'lm.width': 9})]", "'a' cannot be .*width=9"),
    )
    def test_refused_sweep_files(self, text, message):
        path = self.sweep_file(
            f"from experiments.sweeps.run_list import Run\nC = {CONFIG!r}\n{text}\n"
        )
        with self.assertRaisesRegex(ValueError, message):
            sweep.load_runs(path)

    def test_missing_sweep_file(self):
        with self.assertRaisesRegex(ValueError, "sweep 'nowhere.py' is not a file"):
            sweep.load_runs("nowhere.py")

    @parameterized.parameters(
        (2, 2, "", "--index=2 must be from 0 to 1"),
        (-1, 2, "", "--index=-1"),
        (0, 1, "(", r"--only='\(' is not a regular expression"),
        (0, 1, "gru", "--only='gru' is in the name of no run; names look like 'a'"),
    )
    def test_refused_selections(self, index, count, only, message):
        with self.assertRaisesRegex(ValueError, message):
            sweep.select([Run("a", "c"), Run("b", "c")], index, count, only)

    @parameterized.parameters(*SWEEPS)
    def test_every_sweep_can_be_configured(self, name):
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(ROOT)
        environment = {}
        if not name.startswith("kv_"):
            spans = self.create_tempfile(content="once upon a time " * 100).full_path
            environment = {"GRADMEM_DATA_DIR": str(data_dir()), "GRADMEM_SPANS": spans}
            stories = data_dir() / "stories260K"
            environment |= {"GRADMEM_STORIES": str(stories), "GRADMEM_WIKITEXT": spans}
            environment["GRADMEM_SMOLLM2"] = str(stories / "stories260K.bin")  # any model does
        with mock.patch.dict(os.environ, environment):
            self.assertNotEmpty(sweep.load_runs(f"experiments/sweeps/{name}"))

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

        (self.root / "n3").mkdir(parents=True)
        (self.root / "n3" / "config.json").write_text("{}")  # of another configuration
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
