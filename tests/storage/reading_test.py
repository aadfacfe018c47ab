"""Files that are none, too large, or damaged: refused at once."""

import os
import pathlib

from absl.testing import absltest, parameterized

from gradmem_jax.storage import reading


class ReadingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = self.folder / "file"

    def test_a_file_or_a_link_to_one(self):
        self.path.write_bytes(b"four")
        (self.folder / "link").symlink_to("file")
        for path in (self.path, self.folder / "link", str(self.path)):
            self.assertEqual(reading.require_file(path, "model"), 4)
            self.assertEqual(reading.read_bytes(path, "model", 4), b"four")

    @parameterized.parameters("missing", "\0", "a" * 5000, "folder", "fifo", "/dev/zero", "loop")
    def test_what_is_no_file(self, name):
        (self.folder / "folder").mkdir()
        os.mkfifo(self.folder / "fifo")
        (self.folder / "loop").symlink_to("loop")
        for read in (reading.read_bytes, reading.read_text, reading.read_json):
            with self.assertRaisesRegex(ValueError, "is not a file.* where is the model"):
                read(self.folder / name, "model", 100)

    def test_too_large(self):
        self.path.write_bytes(bytes(101))
        with self.assertRaisesRegex(ValueError, "has 101 bytes; a model has at most 100"):
            reading.read_bytes(self.path, "model", 100)

    def test_text(self):
        self.path.write_text("Zürich", encoding="utf-8")
        self.assertEqual(reading.read_text(self.path, "text", 100), "Zürich")
        self.path.write_bytes(b"Z\xfcrich")
        with self.assertRaisesRegex(ValueError, "not UTF-8"):
            reading.read_text(self.path, "text", 100)

    def test_json(self):
        for mark in ("", "\ufeff"):  # Windows puts one in front
            self.path.write_text(mark + '{"a": [1]}', encoding="utf-8")
            self.assertEqual(reading.read_json(self.path, "list"), {"a": [1]})

    @parameterized.parameters("", "{", "[" * 10**6, "1" * 5000, '"\\ud8', '{"a": 1, "a": 2}')
    def test_damaged_json(self, text):
        self.path.write_text(text, encoding="utf-8")
        with self.assertRaisesRegex(ValueError, "file, a list, is damaged"):
            reading.read_json(self.path, "list")


if __name__ == "__main__":
    absltest.main()
