"""Where a run starts: parameters of other runs."""

import itertools
import pathlib
import shutil
from unittest import mock

import chex
import numpy as np
from absl.testing import absltest

from experiments import train
from experiments.run import initial_state, stage
from experiments.run.build import build
from gradmem_jax.storage import checkpoint
from tests.experiments.tiny_run import random_run, tiny_config


class InitialStateTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def params(self, name, which="latest"):
        return checkpoint.restore_params(self.folder / name / "checkpoints", which)

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

    def test_a_run_that_starts_from_another_sees_samples_of_its_own(self):
        seen = []

        def next_batch(stage):
            batch = take(stage)
            seen.append([ids.tobytes() for ids in batch["context_ids"]])
            return batch

        def samples(config, name):
            seen.clear()
            train.train(config, self.folder / name)
            return list(seen)

        take = stage.RunningStage.next_batch
        fields = {"data.num_pairs": 4, "data.value_length": 2, "evaluate_every": 2}
        with mock.patch.object(stage.RunningStage, "next_batch", next_batch):
            first = samples(tiny_config(num_steps=4, **fields), "first")
            from_first = fields | {"init_from": str(self.folder / "first")}
            whole = samples(tiny_config(num_steps=4, **from_first), "whole")
            half = samples(tiny_config(num_steps=2, **from_first), "half")
            rest = samples(tiny_config(num_steps=4, **from_first), "half")
            from_whole = fields | {"init_from": str(self.folder / "whole")}
            third = samples(tiny_config(num_steps=4, **from_whole), "third")
        contexts = [set(itertools.chain(*batches)) for batches in (first, whole, third)]
        for one, other in itertools.combinations(contexts, 2):
            self.assertEmpty(one & other)
        self.assertEqual(half[-2:] + rest[-2:], whole[-4:])  # the first batch is looked at before

    def test_start_from_the_language_model_of_another_method(self):
        random_run(self.folder / "first", tiny_config("rmt"))
        config = tiny_config(init_from=str(self.folder / "first"))
        params = initial_state.start_state(build(config)).params
        trained = self.params("first", "best")[1]
        chex.assert_trees_all_equal(params["lm"], trained["lm"])
        np.testing.assert_array_equal(params["write_head"], trained["lm"]["head"])
        self.assertIn("initial_memory", params)


if __name__ == "__main__":
    absltest.main()
