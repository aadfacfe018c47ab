"""Files and folders of data sets, and how names are divided among splits."""

import gzip
import os
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized

from gradmem_jax.data.babi.task import BabiConfig
from gradmem_jax.data.records import data_folder, find_file, read_text, split_names
from gradmem_jax.storage import reading

SPLITS = ("validation", "test")


class RecordsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path).resolve()

    def test_folder_of_the_environment(self):
        with mock.patch.dict(os.environ, {"GRADMEM_DATA_DIR": str(self.folder)}):
            with self.assertRaisesRegex(ValueError, "babi does not exist"):
                BabiConfig().source("train")
            (self.folder / "babi").mkdir()
            self.assertEqual(data_folder("", "babi"), self.folder / "babi")
            self.assertEqual(data_folder(str(self.folder), "babi"), self.folder)
        with mock.patch.dict(os.environ):
            os.environ.pop("GRADMEM_DATA_DIR", None)
            with self.assertRaisesRegex(ValueError, "Set data_dir .* GRADMEM_DATA_DIR"):
                BabiConfig().source("train")

    def test_find_file(self):
        (self.folder / "inner").mkdir()
        self.assertIsNone(find_file(self.folder, "a_*.txt"))
        for name in ("inner/a_1.txt.gz", "inner/a_1.txt", "a_1.txt.gz", "a_1.txt"):
            path = self.folder / name  # each is preferred to those before
            path.touch()
            self.assertEqual(find_file(self.folder, "a_*.txt"), path)
        self.assertEqual(find_file(self.folder, str(path)), path)
        self.assertIsNone(find_file(self.folder, "/nowhere/a_1.txt"))
        (self.folder / "a_2.txt").touch()
        (self.folder / "a_[1].txt").touch()
        self.assertEqual(find_file(self.folder, "a_[1].txt"), self.folder / "a_[1].txt")
        with self.assertRaisesRegex(ValueError, "several files fit a_"):
            find_file(self.folder, "a_*.txt")

    @parameterized.parameters(
        ("a.txt", b"\xe9", "cannot read .*utf-8"),
        ("a.txt", b" \n", "is empty"),
        ("a.txt.gz", b"text", "cannot read"),
        ("a.txt.gz", gzip.compress(b"text")[:-4], "cannot read"),
        ("a.txt.gz", gzip.compress(b""), "is empty"),
    )
    def test_damaged_file(self, name, content, message):
        (self.folder / name).write_bytes(content)
        with self.assertRaisesRegex(ValueError, message):
            read_text(self.folder / name)

    def test_a_packed_file_unpacks_to_what_a_text_may_have(self):
        path = self.folder / "a.txt.gz"
        text = "one two three\n" * 10**6  # shrinks to 1/340, but is small
        path.write_bytes(gzip.compress(text.encode()))
        self.assertEqual(read_text(path), text)
        path.write_bytes(gzip.compress(bytes(65 * 2**20), 1))
        with self.assertRaisesRegex(ValueError, "bytes and unpacks to more than 67108864"):
            read_text(path)

    def test_a_byte_order_mark_is_no_text(self):
        for name, pack in (("a.txt", bytes), ("a.txt.gz", gzip.compress)):
            (self.folder / name).write_bytes(pack("\ufeffé \ufeff".encode()))
            self.assertEqual(read_text(self.folder / name), "é \ufeff")
        self.assertEqual(reading.read_text(self.folder / "a.txt", "text", 99), "é \ufeff")
        (self.folder / "a.json").write_bytes(b"\xef\xbb\xbf{}")
        self.assertEqual(reading.read_json(self.folder / "a.json", "file"), {})

    def test_splits(self):
        names = [f"name {i}" for i in range(30)]
        split_of = split_names(names, SPLITS)
        for split, count in {"train": 24, "validation": 3, "test": 3}.items():
            self.assertLen([name for name in names if split_of[name] == split], count)
        self.assertEqual(split_names(names[::-1] * 2, SPLITS), split_of)
        self.assertEqual(sorted(split_names("ab", SPLITS).values()), ["test", "validation"])
        self.assertEqual(split_names("a", SPLITS), {"a": "validation"})
        self.assertEqual(split_names([], SPLITS), {})


if __name__ == "__main__":
    absltest.main()
