"""Files that are written together: all or none, whatever ends the writer."""

import errno
import fcntl
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.storage import writing
from gradmem_jax.storage.arrays_file import arrays_writer, write_arrays

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("weights", "part/tokens", "config")
# For each number it reads, a child writes version 2 and kills itself at so many events of it.
_KILL = """
import os, pathlib, signal, sys
from gradmem_jax.storage import writing
folder = pathlib.Path(sys.argv[1])
events = ("os.rename", "os.remove", "os.mkdir", "open")
def write(place):
    count = 0
    def watch(event, arguments):
        nonlocal count
        if event in events and str(folder) in str(arguments[0]):
            count += 1
            if count == place:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    writers = {
        name: lambda path: path.write_text("2") for name in ("weights", "part/tokens", "config")
    }
    writing.write_files(folder, writers, remove=["old"])
    os._exit(0)
for line in sys.stdin:
    child = os.fork()
    if not child:
        write(int(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def writers(text):
    return {name: lambda path: path.write_text(text) for name in NAMES}


class WritingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path) / "model"

    def found(self):
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_text() for path in files}

    def test_files_take_the_place_of_older_ones(self):
        writing.write_files(self.folder, writers("1") | {"old": lambda p: p.write_text("1")})
        writing.write_files(self.folder, writers("2"), remove=["old", "never was there"])
        self.assertEqual(self.found(), dict.fromkeys(NAMES, "2"))

    def test_a_writer_that_fails_leaves_what_was_there(self):
        writing.write_files(self.folder, writers("1"))

        def fail(path):
            path.write_text("2")
            raise OSError(errno.ENOSPC, "full")

        for name in NAMES:
            with self.assertRaisesRegex(OSError, f"full: '{self.folder / name}'"):
                writing.write_files(self.folder, writers("2") | {name: fail}, remove=["weights"])
            self.assertEqual(self.found(), dict.fromkeys(NAMES, "1"))

    def test_kill(self):
        """Whenever a writer is killed, there is the old model, the new one, or none."""
        states = set()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _KILL, str(self.folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            for place in range(1, 40):
                writing.write_files(self.folder, writers("1") | {"old": writers("1")["config"]})
                process.stdin.write(f"{place}\n")
                process.stdin.flush()
                status = int(process.stdout.readline())
                found = {name: x for name, x in self.found().items() if ".saving" not in name}
                states.add(found.get("config", "none"))
                if "config" in found:
                    self.assertEqual({found[name] for name in NAMES}, {found["config"]})
                if status == 0:
                    break
                self.assertEqual(status, -signal.SIGKILL)
            process.stdin.close()
        self.assertEqual(status, 0)
        self.assertEqual(states, {"1", "none", "2"})
        self.assertEqual(self.found(), dict.fromkeys(NAMES, "2"))

    def test_what_a_killed_writer_left_is_cleaned_and_a_living_one_is_left_alone(self):
        left = self.folder / ".saving-0123456789abcdef"
        left.mkdir(parents=True)
        (left / "weights").write_text("half")
        other = self.create_tempdir().full_path
        (self.folder / ".saving-link").symlink_to(other)
        pathlib.Path(other, "precious").write_text("keep")

        def write_inside(path):
            writing.write_files(self.folder, writers("2"))  # cleans, but not what we write
            path.write_text("1")

        writing.write_files(self.folder, {"outer": write_inside})
        self.assertEqual(self.found(), dict.fromkeys(NAMES, "2") | {"outer": "1"})
        self.assertTrue(pathlib.Path(other, "precious").exists())

    @parameterized.parameters("opened", "locked")
    def test_a_folder_that_another_process_cleans_first_is_left_to_it(self, when):
        """Between our making a folder and our lock, `clean` of another process may take it."""
        flock, taken = fcntl.flock, []

        def flock_second(descriptor, operation):
            if not taken:
                taken.extend(self.folder.glob(".saving-*"))
                other = os.open(taken[0], os.O_RDONLY)
                self.addCleanup(os.close, other)
                flock(other, operation)
                if when == "opened":  # it is gone before our lock
                    shutil.rmtree(taken[0])
                    flock(other, fcntl.LOCK_UN)
            flock(descriptor, operation)

        def write(path):
            shutil.rmtree(taken[0], ignore_errors=True)
            path.write_text("1")

        with mock.patch.object(fcntl, "flock", flock_second):
            writing.write_files(self.folder, {"text": write})
        self.assertLen(taken, 1)
        self.assertEqual(self.found(), {"text": "1"})
        self.assertEmpty(list(self.folder.glob(".saving-*")))

    def test_nothing_is_written_through_a_link(self):
        other = pathlib.Path(self.create_tempdir().full_path) / "precious"
        other.write_text("keep")
        self.folder.mkdir()
        for name in ("weights", "config"):
            (self.folder / name).symlink_to(other)
        writing.write_files(self.folder, writers("1"))
        self.assertEqual(other.read_text(), "keep")
        self.assertEqual(self.found(), dict.fromkeys(NAMES, "1"))

    def test_a_folder_that_is_a_link(self):
        other = pathlib.Path(self.create_tempdir().full_path)
        (other / "tokens").write_text("keep")
        self.folder.mkdir()
        (self.folder / "part").symlink_to(other)
        message = "part/tokens: .*'. is a link; remove it"
        with self.assertRaisesRegex(ValueError, message):
            writing.write_files(self.folder, writers("1"))
        with self.assertRaisesRegex(ValueError, message):
            writing.write_files(self.folder, {"config": print}, remove=["part/tokens"])
        self.assertEqual((other / "tokens").read_text(), "keep")

    def test_a_folder_in_place_of_a_file(self):
        (self.folder / "config").mkdir(parents=True)
        with self.assertRaisesRegex(ValueError, "config is a folder; a file cannot take"):
            writing.write_files(self.folder, writers("1"))
        self.assertEmpty(self.found())

    def test_a_device_in_place_of_a_file(self):
        os.mkfifo(self.folder.parent / "device")
        with self.assertRaisesRegex(ValueError, "device is a device or FIFO"):
            writing.write_text(self.folder.parent / "device", "1")

    def test_arrays_on_a_disk_that_is_full(self):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
        self.addCleanup(signal.signal, signal.SIGXFSZ, signal.getsignal(signal.SIGXFSZ))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.folder.mkdir()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with self.assertRaises(OSError) as refused:
            arrays_writer({"a": np.zeros(1000)}, {})(self.folder / "arrays")
        self.assertEqual(refused.exception.errno, errno.EFBIG)

    def test_others_may_read_arrays_as_other_files(self):
        self.addCleanup(os.umask, os.umask(0o022))
        write_arrays(self.folder / "arrays", {"a": np.zeros(3)}, {})
        writing.write_text(self.folder / "text", "1")
        modes = {path.name: path.stat().st_mode & 0o777 for path in self.folder.iterdir()}
        self.assertEqual(modes, {"arrays": 0o644, "text": 0o644})


if __name__ == "__main__":
    absltest.main()
