"""Checkpoints: exact round trip, which ones are kept, damage."""

import pathlib

import chex
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from gradmem_jax import checkpoint


def state_of(step):
    params = {"w": jnp.arange(4.0) + step, "b": jnp.float32(step)}
    return {"params": params, "step": jnp.int32(step)}


class CheckpointTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path) / "checkpoints"

    def save(self, *exact_matches):
        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            for step, value in enumerate(exact_matches, start=1):
                run = {"stage": step, "iterator": {"next": 10 * step}}
                checkpoint.save(checkpoints, step, state_of(step), run, {"score": value})

    def restore(self):
        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            return checkpoint.restore_latest(checkpoints, state_of(0))

    def test_round_trip_of_the_newest(self):
        self.assertIsNone(self.restore())
        self.save(0.1, 0.2, 0.15)
        state, run = self.restore()
        chex.assert_trees_all_equal(state, state_of(3))
        self.assertEqual(run, {"stage": 3, "iterator": {"next": 30}})

    def test_best_and_latest_are_kept(self):
        self.save(0.1, 0.9, 0.3, 0.4, 0.2)
        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            self.assertEqual(sorted(checkpoints.all_steps()), [2, 4, 5])
        for which, want in (("best", 2), ("latest", 5), ("4", 4)):
            step, params = checkpoint.restore_params(self.folder, which)
            self.assertEqual(step, want)
            np.testing.assert_array_equal(params["w"], np.arange(4.0) + want)

    def test_damaged_checkpoint_is_set_aside_and_the_one_before_used(self):
        self.save(0.1, 0.2, 0.3)
        for path in (self.folder / "3").rglob("*"):
            if path.is_file() and "state" in path.parts:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with self.assertLogs(level="ERROR") as logs:
            state, run = self.restore()
        self.assertIn("checkpoint of step 3 is damaged", "".join(logs.output))
        chex.assert_trees_all_equal(state, state_of(2))
        self.assertEqual(run["stage"], 2)
        self.assertTrue((self.folder.parent / "checkpoints.damaged" / "3").is_dir())
        self.assertFalse((self.folder / "3").exists())

    def test_refusals(self):
        with self.assertRaisesRegex(ValueError, "no checkpoints in"):
            checkpoint.restore_params(self.folder)
        self.save(0.1)
        with self.assertRaisesRegex(ValueError, r"no checkpoint '7'; it has steps \[1\]"):
            checkpoint.restore_params(self.folder, "7")
        with self.assertRaisesRegex(ValueError, "no checkpoint 'newest'"):
            checkpoint.restore_params(self.folder, "newest")


if __name__ == "__main__":
    absltest.main()
