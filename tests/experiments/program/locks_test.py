"""Locks of folders."""

import os
import pathlib
import socket

from absl.testing import absltest

from experiments.program import locks


class LocksTest(absltest.TestCase):
    def test_a_lock_names_its_holder_only(self):
        path = pathlib.Path(self.create_tempdir().full_path) / "lock"
        path.write_text("process 1234567890 on a host of a long name\n")
        with locks.hold(path):
            name = f"process {os.getpid()} on {socket.gethostname()}"
            self.assertEqual(locks.holder(path), name)


if __name__ == "__main__":
    absltest.main()
