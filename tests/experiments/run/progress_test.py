"""Progress lines of a run."""

import pathlib
import time
from unittest import mock

from absl.testing import absltest

from experiments.run.progress import Progress
from experiments.run.time_left import TimeLeft
from tests.experiments.tiny_run import tiny_plan

CHANGES = {"num_steps": 100, "log_every": 10, "evaluate_every": 20, "num_eval_samples": 32}
PLAN = tiny_plan(**CHANGES)


class ProgressTest(absltest.TestCase):
    def test_speed_is_of_training_only(self):
        clock = mock.Mock(return_value=0.0)
        metrics = dict.fromkeys(("loss", "exact_match", "token_accuracy", "write_loss"), 0.5)
        with mock.patch.object(time, "monotonic", clock):
            progress = Progress(pathlib.Path(), PLAN, first_step=0, write=False)
            clock.return_value = 30.0
            progress.compiled(20.0)
            with self.assertLogs("experiments", "INFO") as first:
                progress.train(10, 0, metrics)
            clock.return_value = 90.0
            progress.evaluated(60.0)
            clock.return_value = 97.0
            progress.saved(3.0)
            with self.assertLogs("experiments", "INFO") as second:
                progress.train(12, 0, metrics)
        self.assertRegex(first.output[0], r"\| 1 s/step, 8 samples/s \| about .* left$")
        self.assertRegex(second.output[0], r"\| 2 s/step, 4 samples/s \| about .* left$")

    def test_time_left_has_evaluations_and_compiles_and_the_final_report(self):
        time_left = TimeLeft(PLAN)
        time_left.compiles.append(20.0)
        # 90 steps, an evaluation of half of 4 batches at 20, 40, .. and at the end; one compile of
        # a quarter; the report: evaluations with K = 0, 1 and compiles.
        evaluation, compiling = 2.0, 5.0
        report = evaluation * (1 + 2) / 2 + 4 * compiling
        self.assertEqual(time_left(10, 1.0, 0), 90 + 5 * evaluation + compiling + report)
        self.assertEqual(time_left(100, 1.0, 0), evaluation + compiling + report)
        time_left.evaluations += [17.0, 7.0]
        self.assertEqual(time_left(50, 0.1, 0), 5 + 3 * 7 + 7 * 1.5 + 4 * 10)
        saving = TimeLeft(tiny_plan(**CHANGES, save_every=15), [20.0], saves=[4.0, 3.0])
        without = TimeLeft(PLAN, [20.0])
        for step, saves in ((10, 5), (15, 5), (60, 2), (90, 1), (100, 0)):  # one goes with step 60
            self.assertEqual(saving(step, 1.0, 0) - without(step, 1.0, 0), 3 * saves)
        two_stages = TimeLeft(tiny_plan(**CHANGES, **{"curriculum.num_pairs": (1, 2)}), [20.0])
        self.assertEqual(two_stages(10, 1.0, 0) - two_stages(10, 1.0, 1), 20)


if __name__ == "__main__":
    absltest.main()
