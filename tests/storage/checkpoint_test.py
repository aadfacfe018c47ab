"""Checkpoints: exact round trip, which ones are kept, damage, disks that take no more."""

import contextlib
import errno
import gc
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl.testing import absltest, parameterized

from gradmem_jax.storage import checkpoint, steps
from gradmem_jax.storage.checksum import bit_sum, checksum
from gradmem_jax.storage.damage import set_aside
from gradmem_jax.storage.steps import saved_steps
from tests.storage.kill_in_save import NUM_EVENTS, TEMPORARY

ROOT = pathlib.Path(__file__).parents[2]

# After a failed read or write Orbax closes an event loop that coroutines still wait on.
_ORBAX_LEAVES_COROUTINES = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def state_of(step):
    params = {"w": jnp.arange(4.0) + step, "b": jnp.float32(step)}
    return {"params": params, "step": jnp.int32(step)}


def truncate(pattern):
    def damage(folder):
        files = [path for path in folder.rglob(pattern) if path.is_file()]
        assert files, pattern
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def remove(name):
    return lambda folder: shutil.rmtree(folder / name)


def change_arrays(folder):
    """Leaves all files as they could have been written, but with other numbers."""
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.with_name("2") / "state", folder / "state")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@contextlib.contextmanager
def nobody():
    """The system's checks of permissions, which root passes."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class CheckpointTest(parameterized.TestCase):
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
        for which, want in (("best", 2), ("latest", 5), ("4", 4), (4, 4)):
            step, params = checkpoint.restore_params(self.folder, which)
            self.assertEqual(step, want)
            np.testing.assert_array_equal(params["w"], np.arange(4.0) + want)

    @parameterized.named_parameters(
        ("arrays", truncate("d/*")),
        ("manifest", truncate("manifest.ocdbt")),
        ("metadata", truncate("_METADATA")),
        ("run", truncate("run/*")),
        ("metrics", truncate("metrics/metrics")),
        ("changed_arrays", change_arrays),
        ("no_run", remove("run")),
        ("no_state", remove("state")),
        ("empty", empty),
    )
    @_ORBAX_LEAVES_COROUTINES
    def test_damaged_checkpoint_is_set_aside_and_the_one_before_used(self, damage):
        self.save(0.1, 0.2, 0.3)
        damage(self.folder / "3")
        for _ in range(2):  # the second time there is one aside already
            with self.assertLogs(level="ERROR") as logs:
                state, run = self.restore()
            self.assertIn("checkpoint of step 3 is damaged", "".join(logs.output))
            chex.assert_trees_all_equal(state, state_of(2))
            self.assertEqual(run["stage"], 2)
            self.assertFalse((self.folder / "3").exists())
            shutil.copytree(self.folder.parent / "checkpoints.damaged" / "3", self.folder / "3")

    @_ORBAX_LEAVES_COROUTINES
    def test_if_all_are_damaged_a_run_does_not_begin_anew_unasked(self):
        self.save(0.1, 0.2)
        for step in ("1", "2"):
            truncate("d/*")(self.folder / step)
        with (
            self.assertLogs(level="ERROR"),
            self.assertRaisesRegex(
                checkpoint.CheckpointError, r"steps \[2, 1\] are damaged .*step 0"
            ),
        ):
            self.restore()
        self.assertIsNone(self.restore())
        aside = self.folder.parent / "checkpoints.damaged"
        self.assertSameElements([path.name for path in aside.iterdir()], ["1", "2"])

    @parameterized.named_parameters(
        ("arrays", truncate("d/*"), r"'best' of .*checkpoints, step 3, cannot be read"),
        ("changed_arrays", change_arrays, r"step 3, cannot be read: its arrays are not those"),
        ("metadata", truncate("_METADATA"), r"also steps \[2\]; name one of them"),
        ("metrics", truncate("metrics/metrics"), r"damaged: .* Move the folder 3 away"),
    )
    @_ORBAX_LEAVES_COROUTINES
    def test_damaged_best_is_said_to_be(self, damage, message):
        self.save(0.1, 0.2, 0.3)
        damage(self.folder / "3")
        with self.assertRaisesRegex(ValueError, f"(?s){message}"):
            checkpoint.restore_params(self.folder)
        shutil.rmtree(self.folder / "3")
        self.assertEqual(checkpoint.restore_params(self.folder)[0], 2)

    @parameterized.named_parameters(
        ("no_permission_state", ("d/*", "manifest.ocdbt"), "PERMISSION_DENIED"),
        ("no_permission_metadata", ("_METADATA",), "Permission denied"),
        ("no_permission_run", ("run/metadata",), "Permission denied"),
        ("no_permission_folder", ("state",), "Permission denied"),
    )
    @_ORBAX_LEAVES_COROUTINES
    def test_a_checkpoint_that_may_not_be_read_stays(self, patterns, message):
        self.save(0.1, 0.2, 0.3)
        closed = [path for pattern in patterns for path in (self.folder / "3").rglob(pattern)]
        self.assertNotEmpty(closed)
        for path in [*self.folder.parents[:3], self.folder, *self.folder.rglob("*")]:
            path.chmod(0o777)
        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            modes = {path: path.stat().st_mode for path in closed}
            for path in closed:
                path.chmod(0)
            with self.assertRaisesRegex(checkpoint.CheckpointError, message) as raised, nobody():
                checkpoint.restore_latest(checkpoints, state_of(0))
            self.assertRegex(
                str(raised.exception), r"(?s)step 3 in .* left as it is\. .* folder 3 away"
            )
            for path in closed:
                path.chmod(modes[path])
            state, _ = checkpoint.restore_latest(checkpoints, state_of(0))
        chex.assert_trees_all_equal(state, state_of(3))

    @parameterized.parameters(
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        MemoryError("too little"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
        ValueError("UNKNOWN: Error reading file: Input/output error [os_error_code='5']"),
    )
    def test_a_failure_that_is_no_damage_stops(self, failure):
        self.save(0.1, 0.2)

        def fail(*_, **__):
            try:
                raise failure
            except type(failure) as error:
                raise RuntimeError("while reading") from error

        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            with (
                mock.patch.object(ocp.CheckpointManager, "restore", fail),
                self.assertRaisesRegex(checkpoint.CheckpointError, "while reading"),
            ):
                checkpoint.restore_latest(checkpoints, state_of(0))
            self.assertEqual(checkpoints.all_steps(), [1, 2])
        self.assertFalse((self.folder.parent / "checkpoints.damaged").exists())

    @parameterized.parameters(
        ({"params": {"w": jnp.zeros(5), "b": jnp.float32(0)}}, r"params/w: float32\[4\] there"),
        ({"params": {"w": jnp.zeros(4)}}, r"params/b: float32\[\] there, None here"),
        ({"rate": jnp.float32(0)}, r"rate: None there, float32\[\] here"),
        ({"step": jnp.float32(0)}, r"step: int32\[\] there, float32\[\] here"),
    )
    def test_a_state_of_another_structure_stops(self, changes, message):
        self.save(0.1, 0.2)
        with (
            self.assertRaisesRegex(
                checkpoint.CheckpointError, f"1 arrays differ, such as {message}"
            ),
            checkpoint.open_checkpoints(self.folder) as checkpoints,
        ):
            checkpoint.restore_latest(checkpoints, state_of(0) | changes)
        chex.assert_trees_all_equal(self.restore()[0], state_of(2))

    @parameterized.parameters(
        (True, r"step 2 .* cannot be read: another process says why. It may be whole", [1, 2]),
        (False, "step 2 is damaged and set aside: another process says why", [1]),
    )
    def test_what_one_process_cannot_read_none_goes_on_from(self, stops, message, left):
        self.save(0.1, 0.2)
        first_reads = [True]

        def gather(own):
            self.assertEqual(own, (False, False))  # this process has read it
            other = (True, stops) if first_reads.pop() else own
            first_reads.append(False)
            return np.array([own, other])

        with (
            mock.patch.object(checkpoint, "_gather", gather),
            checkpoint.open_checkpoints(self.folder) as checkpoints,
        ):
            restore = lambda: checkpoint.restore_latest(checkpoints, state_of(0))
            if stops:
                with self.assertRaisesRegex(checkpoint.CheckpointError, message):
                    restore()
            else:
                with self.assertLogs(level="ERROR") as logs:
                    chex.assert_trees_all_equal(restore()[0], state_of(1))
                self.assertRegex("".join(logs.output), message)
            self.assertEqual(checkpoints.all_steps(), left)

    def test_without_metrics_it_is_the_latest_but_never_the_best(self):
        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            for step, metrics in ((1, {"score": 0.5}), (2, None), (3, {"score": 0.1}), (4, None)):
                checkpoint.save(checkpoints, step, state_of(step), {}, metrics)
            self.assertEqual(sorted(checkpoints.all_steps()), [1, 3, 4])
            checkpoint.save(checkpoints, 4, state_of(5), {"again": 1}, {"score": 0.9})
        self.assertEqual(checkpoint.restore_params(self.folder)[0], 4)
        state, run = self.restore()
        chex.assert_trees_all_equal((state, run), (state_of(5), {"again": 1}))

    @parameterized.parameters(np.nan, np.inf, -np.inf)
    def test_a_score_that_is_not_finite_is_never_the_best(self, score):
        self.save(score)
        self.assertEqual(checkpoint.restore_params(self.folder, "latest")[0], 1)
        with self.assertRaisesRegex(ValueError, r"no checkpoint 'best'; it has steps \[1\]"):
            checkpoint.restore_params(self.folder)
        for scores in ((0.9, score, 0.5, score, 0.3), (score, 0.9, 0.5, 0.4, score)):
            shutil.rmtree(self.folder)
            self.save(*scores)
            self.assertEqual(saved_steps(self.folder), [scores.index(0.9) + 1, 4, 5])
            self.assertEqual(checkpoint.restore_params(self.folder)[0], scores.index(0.9) + 1)

    def test_a_score_that_an_earlier_version_saved_though_it_is_not_finite(self):
        with mock.patch.object(checkpoint._Checkpoints, "save", ocp.CheckpointManager.save):
            self.save(0.9, np.nan)
        self.assertIn("NaN", (self.folder / "2" / "metrics" / "metrics").read_text())
        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            for step in (3, 4):
                checkpoint.save(checkpoints, step, state_of(step), {}, {"score": 0.5})
            self.assertEqual(sorted(checkpoints.all_steps()), [1, 3, 4])
        self.assertEqual(checkpoint.restore_params(self.folder)[0], 1)

    @parameterized.parameters("close", "check", "save")
    @_ORBAX_LEAVES_COROUTINES
    def test_full_disk_is_reported_and_the_last_checkpoint_stays(self, when):
        big = {"w": jnp.asarray(np.random.default_rng(0).normal(size=100_000))}
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
        message = r"(?s)could not be written to .*checkpoints: .*Whole ones there: steps \[1\]"
        with (
            self.assertRaisesRegex(checkpoint.CheckpointError, message),
            checkpoint.open_checkpoints(self.folder) as checkpoints,
        ):
            checkpoint.save(checkpoints, 1, big, {}, {"score": 0.1})
            checkpoints.wait_until_finished()
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
            checkpoint.save(checkpoints, 2, big, {}, {"score": 0.2})
            if when == "save":
                checkpoint.save(checkpoints, 3, big, {}, {"score": 0.3})
                self.fail("the failure was hidden")
            while when == "check":
                time.sleep(0.05)
                checkpoint.check_for_errors(checkpoints)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            self.assertEqual(checkpoints.all_steps(), [1])
            state, _ = checkpoint.restore_latest(checkpoints, big)
        chex.assert_trees_all_equal(state, big)

    @parameterized.parameters(2, 8, 13, 21, NUM_EVENTS)
    def test_killed_inside_a_save(self, depth):
        code = (
            "from gradmem_jax.storage import checkpoint\n"
            "from tests.storage.checkpoint_test import state_of\n"
            "from tests.storage.kill_in_save import kill_in_save\n"
            f"kill_in_save({str(self.folder)!r}, 2, {depth})\n"
            f"with checkpoint.open_checkpoints({str(self.folder)!r}) as checkpoints:\n"
            "  for step in (1, 2):\n"
            "    checkpoint.save(checkpoints, step, state_of(step), {'stage': step}, {'score': 1})"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
        self.assertEqual(done.returncode, -signal.SIGKILL, done.stderr)
        self.assertEqual({path.name for path in self.folder.iterdir()}, {"1", f"2{TEMPORARY}"})
        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            self.assertEqual(checkpoints.all_steps(), [1])
            state, run = checkpoint.restore_latest(checkpoints, state_of(0))
            chex.assert_trees_all_equal((state, run), (state_of(1), {"stage": 1}))
            checkpoint.save(checkpoints, 2, state_of(2), {}, {"score": 0.5})
        self.assertEqual({path.name for path in self.folder.iterdir()}, {"1", "2"})
        chex.assert_trees_all_equal(self.restore()[0], state_of(2))

    def test_what_is_no_step_is_never_moved_or_deleted(self):
        self.save(0.3, 0.2, 0.1)
        elsewhere = self.folder.parent / "elsewhere"
        shutil.copytree(self.folder / "3", elsewhere)
        others = ("Documents", "07", "-1", "\u0663", "1" * 19, "5.old")
        for name in others:
            shutil.copytree(self.folder / "3", self.folder / name)
            (self.folder / name / "metrics" / "metrics").write_text("no JSON")
        (self.folder / "99").write_text("a file")
        (self.folder / "link").symlink_to(elsewhere)
        with checkpoint.open_checkpoints(self.folder) as checkpoints:
            for step in (4, 5, 6):
                checkpoint.save(checkpoints, step, state_of(step), {}, {"score": step})
        names = {path.name for path in self.folder.iterdir()}
        self.assertEqual(names, {"5", "6", "99", "link", *others})
        self.assertTrue((elsewhere / "metrics" / "metrics").exists())
        self.assertEqual(saved_steps(self.folder), [5, 6])

    @parameterized.parameters(
        "checkpoints", "checkpoints.damaged", "checkpoints/7", "checkpoints/7.orbax-checkpoint-tmp"
    )
    def test_nothing_is_changed_through_a_link(self, name):
        self.save(0.1, 0.2)
        elsewhere = self.folder.parent / "elsewhere"
        link = self.folder.parent / name
        if link.exists():
            link.rename(elsewhere)
        else:
            shutil.copytree(self.folder / "2", elsewhere)
        before = sorted(elsewhere.rglob("*"))
        link.symlink_to(elsewhere)
        with self.assertRaisesRegex(ValueError, f"/{name} is a link: .* Remove it, or"):
            self.save(0.1, 0.2, 0.3)
        self.assertEqual(sorted(elsewhere.rglob("*")), before)
        self.assertEqual(checkpoint.restore_params(self.folder, "latest")[0], 2)

    def test_a_link_does_not_take_a_damaged_checkpoint(self):
        self.save(0.1, 0.2)
        elsewhere = self.folder.parent / "elsewhere"
        (elsewhere / "2").mkdir(parents=True)
        (self.folder.parent / "checkpoints.damaged").symlink_to(elsewhere)
        with self.assertRaisesRegex(ValueError, "checkpoints.damaged is a link"):
            set_aside(self.folder, 2)
        self.assertTrue((elsewhere / "2").exists() and (self.folder / "2").exists())

    @parameterized.parameters("state/_METADATA", "run/metadata", "metrics/metrics", "state/d/other")
    def test_only_regular_files_are_opened(self, name):
        self.save(0.2, 0.1)
        path = self.folder / "1" / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        with self.assertRaisesRegex(ValueError, f"{name} is not a file but a device, a FIFO"):
            checkpoint.restore_params(self.folder)

    def test_rows_that_have_changed_places_are_found(self):
        w = state_of(0)["params"]["w"]
        saved = checksum(state_of(1))
        with (
            mock.patch.object(checkpoint, "checksum", lambda _: saved),
            checkpoint.open_checkpoints(self.folder) as checkpoints,
        ):
            permuted = state_of(1) | {"params": {"w": 1 + w[::-1], "b": jnp.float32(1)}}
            checkpoint.save(checkpoints, 1, permuted, {}, {"score": 0.0})
        with self.assertRaisesRegex(ValueError, "they have another checksum, so some of them"):
            checkpoint.restore_params(self.folder)

    @_ORBAX_LEAVES_COROUTINES
    def test_the_sum_of_earlier_versions_is_still_checked(self):
        with (
            mock.patch.object(checkpoint, "_CHECKSUM", "bit_sum"),
            mock.patch.object(checkpoint, "checksum", bit_sum),
        ):
            self.save(0.1, 0.2, 0.3)
        self.assertIn("bit_sum", (self.folder / "3" / "run" / "metadata").read_text())
        self.assertEqual(checkpoint.restore_params(self.folder)[0], 3)
        change_arrays(self.folder / "3")
        with self.assertRaisesRegex(ValueError, "they have another bit_sum"):
            checkpoint.restore_params(self.folder)

    @parameterized.parameters("lr[1e-3]", "a[!b] *?{c,d}", "50% 'é中' \"$HOME\"\n;", "-a.", "file:")
    def test_whatever_a_folder_is_called(self, name):
        self.folder = self.folder / name / "checkpoints"
        self.save(0.1, 0.2)
        self.assertEqual(self.restore()[1]["stage"], 2)
        self.assertEqual(checkpoint.restore_params(self.folder)[0], 2)

    @parameterized.parameters("a\\b", "gs:", "\udcff")
    def test_folders_that_tensorstore_takes_for_others(self, name):
        self.folder = self.folder / name / "checkpoints"
        with self.assertRaisesRegex(ValueError, "cannot be written to a path with a backslash"):
            self.save(0.1)
        self.assertFalse(self.folder.exists())

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_checkpoint_is_saved_when_its_arrays_are_found(self):
        with mock.patch.object(steps.OrbaxPath, "glob", lambda *_: iter(())):  # nothing is merged
            with self.assertRaisesRegex(checkpoint.CheckpointError, "could not be written"):
                self.save(0.1)
            with self.assertRaises(checkpoint.CheckpointError):
                self.save(0.1, 0.2)
        gc.collect()  # what Orbax leaves of a failed save complains when it goes

    def test_refusals(self):
        with self.assertRaisesRegex(ValueError, "gs:.*is an address, .* Mount the bucket"):
            checkpoint.restore_params("gs://bucket/run")
        with self.assertRaisesRegex(ValueError, "no checkpoints in"):
            checkpoint.restore_params(self.folder)
        self.save(0.1)
        with self.assertRaisesRegex(ValueError, r"no checkpoint '7'; it has steps \[1\]"):
            checkpoint.restore_params(self.folder, "7")
        with self.assertRaisesRegex(ValueError, "no checkpoint 'newest'"):
            checkpoint.restore_params(self.folder, "newest")


if __name__ == "__main__":
    absltest.main()
