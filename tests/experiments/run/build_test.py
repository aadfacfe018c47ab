"""The plan of a run, as a configuration describes it."""

import dataclasses

import numpy as np
from absl.testing import absltest

from experiments.run.build import build
from tests.experiments.tiny_run import target_stage, tiny_config, tiny_plan


class BuildTest(absltest.TestCase):
    def test_what_data_and_optimizer_take_from_the_run(self):
        one, other = (
            target_stage(tiny_config(seed=seed)).task.source("train")[0] for seed in (3, 4)
        )
        self.assertFalse(np.array_equal(one["context_ids"], other["context_ids"]))
        self.assertEqual(build(tiny_config(num_steps=77)).optimizer.num_steps, 77)

    def test_a_plan_is_frozen_and_keeps_nothing_of_the_configuration(self):
        config = tiny_config(**{"curriculum.num_pairs": (1, 2), "frozen": ("^lm/",)})
        plan = build(config)
        with self.assertRaises(dataclasses.FrozenInstanceError):
            plan.num_steps = 3
        config.num_steps, config.data.num_pairs = 77, 5
        self.assertEqual(plan.num_steps, 8)
        self.assertEqual(plan.fields["num_steps"], 8)
        self.assertEqual([stage.task.num_pairs for stage in plan.stages], [1, 2])
        self.assertEqual(plan.target, plan.stages[-1])

    def test_a_model_with_other_values(self):
        plan = tiny_plan(
            **{
                "write_optimizer.name": "sgd",
                "write_optimizer.arguments": {"learning_rate": 0.1},
            }
        )
        model = plan.model_with(num_write_steps=7)
        self.assertEqual(model.config.num_write_steps, 7)
        self.assertIs(model.write_optimizer, plan.target.model.write_optimizer)
        back = dataclasses.replace(model.config, num_write_steps=1)
        self.assertEqual(back, plan.target.model.config)

    def test_a_score_is_better_if_it_is_more(self):
        metrics = {"read_loss": 2.0, "exact_match": 0.5}
        self.assertEqual(tiny_plan(best_metric="exact_match").score(metrics), 0.5)
        self.assertEqual(tiny_plan(best_metric="read_loss").score(metrics), -2.0)


if __name__ == "__main__":
    absltest.main()
