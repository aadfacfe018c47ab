"""Disks that take no more, and folders that take nothing: refused, or the run goes on later."""

import errno
import json
import os
import pathlib
import resource
import shutil
import subprocess
import unittest
from unittest import mock

import chex
import pytest
from absl.testing import absltest, flagsaver, parameterized

from experiments import train
from experiments.program import console, files
from experiments.run.progress import Progress
from gradmem_jax.storage import checkpoint
from tests.experiments.run.stopping_test import start_run
from tests.experiments.tiny_run import tiny_plan
from tests.programs import ROOT, start

METRICS = {"loss": 2.0, "exact_match": 0.5, "token_accuracy": 0.5, "write_loss": 1.0}
OUTPUTS = {
    "train": ("--workdir={}",),
    "sweep": ("--sweep=experiments/sweeps/kv_small.py", "--root={}"),
    "evaluate": ("--workdir={run}", "--out={}"),
    "write": ("--model=none", "--context=none", "--out={}"),
    "reconstruct": ("--model=none", "--context=none", "--out={}"),
    "sample": ("--model=none", "--out={}"),
    "benchmark": ("--out={}",),
    "break_even": ("--out={}",),
    "scaling": ("--out={}",),
    "weak_scaling": ("--out={}",),
    "report": ("--root=none", "--out={}"),
    "curves": ("--root=none", "--out={}.png"),
}


class Disk:
    """A small file system of its own."""

    def __init__(self, test, folder, size):
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            raise unittest.SkipTest("this user may not mount a tmpfs to fill")
        test.addCleanup(subprocess.run, ["umount", str(folder)], check=True)
        self._folder = folder

    def fill(self, keep):
        """Leaves so many bytes free."""
        found = os.statvfs(self._folder)
        (self._folder / "fill").write_bytes(bytes(found.f_bavail * found.f_frsize - keep))

    def empty(self):
        (self._folder / "fill").unlink()


class FullDiskTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def run_to_end(self, name, **changes):
        process = start_run(self, self.folder, name, **changes)
        out, _ = process.communicate()
        return process.returncode, out

    @pytest.mark.slow
    def test_training_stops_on_a_full_disk_and_goes_on_when_there_is_room(self):
        disk = Disk(self, self.folder / "disk", "4M")
        self.assertEqual(self.run_to_end("disk/run", num_steps=8)[0], 0)
        run, straight = self.folder / "disk" / "run", self.folder / "straight"
        shutil.copytree(run, straight)
        self.assertEqual(self.run_to_end("straight")[0], 0)
        # No room for config.json, for the state of a checkpoint, for its last parts.
        for free in (0, 16_384, 65_536, 98_304):
            for left in run.glob("checkpoints/*.orbax-checkpoint-tmp"):  # the start would free it
                shutil.rmtree(left)
            disk.fill(keep=free)
            code, out = self.run_to_end("disk/run")
            self.assertEqual(code, 1, out)
            self.assertRegex(out, r"(?i)no space left on device|RESOURCE_EXHAUSTED")
            self.assertRegex(out, rf"(Make space .*{run}|written to {run})")
            self.assertIn("the same command", out.splitlines()[-1])
            self.assertNotIn("Traceback", out)
            self.assertLess(len(out.splitlines()), 12, out)
            self.assertEqual(checkpoint.restore_params(run / "checkpoints", "latest")[0], 8)
            disk.empty()
        self.assertEqual(self.run_to_end("disk/run")[0], 0)
        for which in ("latest", "best"):
            one, other = (
                checkpoint.restore_params(folder / "checkpoints", which)
                for folder in (run, straight)
            )
            chex.assert_trees_all_equal(one, other)
        results = [json.loads((x / "metrics.json").read_text()) for x in (run, straight)]
        self.assertEqual(*(result["by_num_write_steps"] for result in results))

    def test_a_full_disk_stops_the_events(self):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
        progress = Progress(self.folder, tiny_plan(num_steps=99), first_step=0)
        progress.train(1, 0, METRICS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with self.assertRaisesRegex(OSError, "File too large"):
            for step in range(2, 99):
                progress.train(step, 0, METRICS)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        progress.__exit__()


class StorageErrorsTest(parameterized.TestCase):
    @parameterized.parameters(
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE")
    )
    def test_what_a_disk_is_blamed_for(self, name):
        error = OSError(getattr(errno, name), "no good")
        with self.assertLogs("experiments", "ERROR") as logs:
            self.assertEqual(self.fail_with(error), 1)
        self.assertIn("no good. Make space for somewhere, or mend its disk", logs.output[0])

    def test_other_errors(self):
        with self.assertRaisesRegex(OSError, "no program"):
            self.fail_with(OSError(errno.ENOEXEC, "no program"))

    def fail_with(self, error):
        with (
            mock.patch.object(train, "train", side_effect=error),
            mock.patch.object(console, "set_up_logging"),
            flagsaver.flagsaver(workdir="somewhere"),
        ):
            return train.main([])


class UnwritableTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        (self.folder / "file").write_text("a file")

    @parameterized.parameters("file", "file/below", "/proc/below", "/dev/null/below")
    def test_folder(self, name):
        with self.assertRaisesRegex(ValueError, f"--out: files .*{name} .*another --out"):
            files.output_folder("out", self.folder / name)

    @parameterized.parameters(
        ("folder", "is a folder"), ("file/below", "file is no|Not a dir|exists")
    )
    def test_file(self, name, message):
        (self.folder / "folder").mkdir()
        with self.assertRaisesRegex(ValueError, message):
            files.output_file("out", self.folder / name)

    def test_good_ones_are_made_and_left_empty(self):
        path = files.output_file("out", self.folder / "new" / "deep" / "file")
        self.assertEqual(list(path.parent.iterdir()), [])
        self.assertEqual(files.output_file("out", self.folder / "file").read_text(), "a file")

    @parameterized.parameters(*OUTPUTS)
    def test_programs_refuse(self, program):
        shutil.copy(ROOT / "experiments" / "models" / "babi_qa2" / "config.json", self.folder)
        bad = self.folder / "file" / "below"
        arguments = [text.format(bad, run=self.folder) for text in OUTPUTS[program]]
        done = start(program, *arguments)
        self.assertEqual(done.returncode, 1)
        flag = OUTPUTS[program][-1].partition("=")[0]
        message = rf"(?m)^error: {flag}: files .*{self.folder}/file.* another"
        self.assertRegex(done.stderr, message)
        self.assertNotIn("Traceback", done.stderr)
        self.assertNotIn("compil", done.stdout)


if __name__ == "__main__":
    absltest.main()
