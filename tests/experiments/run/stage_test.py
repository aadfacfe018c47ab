"""Stages of a run: their batches and their steps."""

from unittest import mock

import numpy as np
from absl.testing import absltest

from experiments.run.build import build
from experiments.run.compiled_steps import CompiledSteps
from experiments.run.devices import find_devices
from experiments.run.stage import RunningStage
from gradmem_jax.training.optimizer import make_optimizer
from gradmem_jax.training.step import init_state, step_params
from tests.experiments.tiny_run import target_stage, tiny_config
from tests.small import small_params


class RunningStageTest(absltest.TestCase):
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


if __name__ == "__main__":
    absltest.main()
