"""Learning curves from the events that training writes."""

import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from experiments.results import figures
from experiments.run.progress import Progress
from experiments.run.tensorboard_writer import read_scalars
from tests.experiments.tiny_run import tiny_plan
from tests.programs import start

PLAN = tiny_plan()
METRICS = {"loss": 2.0, "exact_match": 0.5, "token_accuracy": 0.5, "write_loss": 1.0}


class CurvesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        with Progress(self.workdir, PLAN, first_step=0) as progress:
            for step in (2, 4):
                progress.train(step, 0, {**METRICS, "read_loss": 1 / step})
            progress.scalars("evaluation", 4, {"exact_match": 0.25})

    def test_reads_what_training_wrote(self):
        scalars = read_scalars(self.workdir)
        self.assertEqual(scalars["train/read_loss"], [(2, 0.5), (4, 0.25)])
        self.assertEqual(scalars["evaluation/exact_match"], [(4, 0.25)])

    def test_a_file_that_is_still_being_written(self):
        (path,) = (self.workdir / "tensorboard").iterdir()
        path.write_bytes(path.read_bytes()[:-3])
        scalars = read_scalars(self.workdir)
        self.assertNotIn("evaluation/exact_match", scalars)
        self.assertLen(scalars["train/read_loss"], 2)

    def test_a_stopped_run_that_went_on(self):
        (path,) = (self.workdir / "tensorboard").iterdir()
        path.rename(path.with_name("events.out.tfevents.1.host"))  # names go by the second
        with Progress(self.workdir, PLAN, first_step=2) as progress:
            progress.train(4, 0, {**METRICS, "read_loss": 0.125})
            progress.train(6, 0, {**METRICS, "read_loss": 0.0625})
        scalars = read_scalars(self.workdir)
        self.assertNotIn("evaluation/exact_match", scalars)  # of step 4; it will come again
        steps, values = zip(*scalars["train/read_loss"], strict=True)
        self.assertEqual(steps, (2, 4, 6))
        self.assertEqual(values, (0.5, 0.125, 0.0625))

    def test_an_evaluation_that_is_due_again_is_told_once(self):
        for due, times in ((False, 1), (True, 0)):
            with Progress(self.workdir, PLAN, first_step=4, evaluation_due=due):
                scalars = read_scalars(self.workdir)
            self.assertLen(scalars.get("evaluation/exact_match", []), times)
            self.assertLen(scalars["train/read_loss"], 2)

    def test_draws_a_panel_for_each_scalar(self):
        path = self.workdir / "curves.png"
        values = np.linspace(0, 1, 30)
        figures.learning_curves(path, {"a": {"x": list(enumerate(values))}, "b": {"y": [(1, 2.0)]}})
        self.assertEqual(path.read_bytes()[:4], b"\x89PNG")

    def test_runs_keep_their_line_in_every_panel_and_no_two_share_one(self):
        runs = {f"run{i}": [(1, float(i))] for i in range(12)}
        later = dict(list(runs.items())[5:])
        plot = mock.Mock(wraps=figures.plt.Axes.plot)
        with mock.patch.object(figures.plt.Axes, "plot", lambda *args, **k: plot(*args, **k)):
            figures.learning_curves(self.workdir / "curves.png", {"a": runs, "b": later})
        lines = {}
        for call in plot.call_args_list:
            style = (call.kwargs["color"], call.kwargs["linestyle"])
            self.assertEqual(lines.setdefault(call.kwargs["label"], style), style)
        self.assertLen(set(lines.values()), 12)

    def test_refusals(self):
        Progress(self.workdir / "empty", PLAN, first_step=0).__exit__()
        for only, message in (
            ("[", r"--only='\[' is not a regular expression"),
            ("empty", "'train/read_loss' is in no run; there are none yet"),
        ):
            out = self.workdir / "a.png"
            done = start("curves", f"--root={self.workdir}", f"--only={only}", f"--out={out}")
            self.assertRegex(done.stderr, f"^error: .*{message}")


if __name__ == "__main__":
    absltest.main()
