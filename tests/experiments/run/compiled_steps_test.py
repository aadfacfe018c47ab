"""Training steps that stages share."""

from absl.testing import absltest

from experiments.run import initial_state
from experiments.run.build import build
from experiments.run.compiled_steps import CompiledSteps
from experiments.run.devices import find_devices
from experiments.run.stage import RunningStage
from tests.experiments.tiny_run import tiny_config


class CompiledStepsTest(absltest.TestCase):
    def test_stages_share_compiled_steps(self):
        plan = build(tiny_config())
        devices = find_devices(plan)
        steps = self.enterContext(CompiledSteps(plan, devices, initial_state.start_state(plan)))
        with self.assertLogs("experiments", "INFO") as logs:
            for changes in ({}, {}, {"model.num_write_steps": 2}, {"data.num_pairs": 3}, {}):
                RunningStage(build(tiny_config(**changes)), 0, devices, steps)
        self.assertLen(logs.output, 3)


if __name__ == "__main__":
    absltest.main()
