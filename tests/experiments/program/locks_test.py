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

    def test_a_lock_is_no_link_and_no_device(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        (folder / "file").write_text("a text")
        (folder / "link").symlink_to(folder / "file")
        (folder / "away").symlink_to(folder / "nothing")
        os.mkfifo(folder / "fifo")
        for name, message in (("link", "is a link"), ("away", "is a link"), ("fifo", "or a FIFO")):
            with self.assertRaisesRegex(ValueError, message), locks.hold(folder / name):
                self.fail("it is held")
        self.assertEqual((folder / "file").read_text(), "a text")
        self.assertFalse((folder / "nothing").exists())
        self.assertEqual(locks.holder(folder / "fifo"), "another process")

    def test_a_lock_whose_folder_was_replaced_is_not_held(self):
        path = pathlib.Path(self.create_tempdir().full_path) / "run" / "lock"
        with locks.hold(path) as held:
            self.assertTrue(locks.is_held(held, path))
            path.parent.rename(path.parent.with_name("moved"))
            self.assertFalse(locks.is_held(held, path))
            path.parent.mkdir()
            path.write_text("another one")
            self.assertFalse(locks.is_held(held, path))


if __name__ == "__main__":
    absltest.main()
