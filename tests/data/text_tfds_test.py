"""What the TFDS builder of text tasks writes is what the task reads from raw files."""

import contextlib
import dataclasses
import json
import pathlib
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest
from array_record.python import array_record_module

from gradmem_jax.data import text_task
from gradmem_jax.data.babi.task import BabiConfig
from gradmem_jax.data.squad import SquadConfig
from gradmem_jax.data.text_spans import TextSpansConfig
from gradmem_jax.data.text_tfds import prepare
from gradmem_jax.data.wikitext import WikiTextConfig

STORY = "1 Ann slept.\n2 Who slept? \tAnn\t1\n3 Who ate? \n1 Bob slept.\n2 Who slept? \tBob\t1\n"


class TextTFDSTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(contextlib.chdir(self.create_tempdir().full_path))

    def folder(self, files):
        folder = pathlib.Path(self.create_tempdir().full_path)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return str(folder)

    def babi(self):
        return self.folder({f"en/qa1_x_{part}.txt": STORY for part in ("train", "test")})

    def test_disk_and_raw_files_agree(self):
        raw = BabiConfig(data_dir=self.babi(), variant="en")
        folder = self.create_tempdir().full_path
        builder = prepare(raw, folder)
        task = dataclasses.replace(raw, data_dir=str(builder.data_path))
        for split in ("train", "validation", "test"):
            self.assertEqual(task.records(split), raw.records(split))
            np.testing.assert_equal(task.source(split)[0], raw.source(split)[0])
        self.assertLen(task.source("test").skipped, 1)
        self.assertEqual(task.context_buckets, raw.context_buckets)
        again = prepare(raw, folder)
        self.assertEqual(again.info.splits["test"].num_examples, 2)

    def test_nothing_that_the_folder_names_is_run(self):
        raw = BabiConfig(data_dir=self.babi(), variant="en")
        written = pathlib.Path(prepare(raw, self.create_tempdir().full_path).data_path)
        marker = pathlib.Path(self.create_tempdir().full_path) / "ran"
        original = json.loads((written / "features.json").read_text())
        for place in ("top", "text", "inside"):
            features = json.loads(json.dumps(original))
            fields = features["featuresDict"]["features"]
            at = {
                "top": features,
                "text": fields["id"],
                "inside": fields["answers"]["sequence"]["feature"],
            }[place]
            at["pythonClassName"] = f"payload_{place}.Text"
            (written / "features.json").write_text(json.dumps(features))
            pathlib.Path(f"payload_{place}.py").write_text(f"open({str(marker)!r}, 'w')")
            task = dataclasses.replace(raw, data_dir=str(written))
            self.assertEqual(task.records("test"), raw.records("test"))
            self.assertFalse(marker.exists())
        info = json.loads((written / "dataset_info.json").read_text())
        info |= {"moduleName": "payload_top", "fileFormat": "payload_top.Format"}
        (written / "dataset_info.json").write_text(json.dumps(info))
        text_task._records.cache_clear()
        self.assertEqual(task.records("test"), raw.records("test"))
        self.assertFalse(marker.exists())

    def test_files_outside_of_the_folder_are_not_read(self):
        raw = BabiConfig(data_dir=self.babi(), variant="en")
        written = pathlib.Path(prepare(raw, self.create_tempdir().full_path).data_path)
        info = json.loads((written / "dataset_info.json").read_text())
        task = dataclasses.replace(raw, data_dir=str(written))
        info["splits"][2]["filepathTemplate"] = "../{SPLIT}.array_record"
        (written / "dataset_info.json").write_text(json.dumps(info))
        self.assertEqual(task.records("test"), raw.records("test"))
        (file,) = written.glob("*test.array_record*")
        file.rename(written.parent / file.name)
        file.symlink_to(written.parent / file.name)
        text_task._records.cache_clear()
        with self.assertRaisesRegex(ValueError, "is a link out of its folder"):
            task.records("test")

    def test_a_file_of_kilobytes_does_not_become_a_gigabyte(self):
        raw = BabiConfig(data_dir=self.babi(), variant="en")
        written = pathlib.Path(prepare(raw, self.create_tempdir().full_path).data_path)
        (file,) = written.glob("*test.array_record*")
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        for _ in range(2):
            writer.write(bytes(40 * 2**20))
        writer.close()
        self.assertLess(file.stat().st_size, 2**20)
        with self.assertRaisesRegex(ValueError, "bytes and would unpack to 8388"):
            dataclasses.replace(raw, data_dir=str(written)).records("test")

    def test_preparing_again_in_a_damaged_folder(self):
        raw, folder = (
            BabiConfig(data_dir=self.babi(), variant="en"),
            self.create_tempdir().full_path,
        )
        written = pathlib.Path(prepare(raw, folder).data_path)
        for damage in ("{", "[]", '{"splits": 5}'):
            (written / "dataset_info.json").write_text(damage)
            with self.assertRaisesRegex(ValueError, "data set babi_qa1_.* cannot be read"):
                prepare(raw, folder)

    def test_running_text(self):
        raw = TextSpansConfig(data_dir=self.folder({"a.txt": "one two three " * 20}), num_tokens=2)
        builder = prepare(raw, self.create_tempdir().full_path)
        task = dataclasses.replace(raw, data_dir=str(builder.data_path))
        for split in ("train", "validation", "test"):
            self.assertEqual(task.records(split), raw.records(split))
            np.testing.assert_equal(task.source(split)[1], raw.source(split)[1])

    def test_other_raw_files_are_another_data_set(self):
        folder = self.create_tempdir().full_path
        first, second = (BabiConfig(data_dir=self.babi(), variant="en") for _ in range(2))
        path = pathlib.Path(second.data_dir) / "en" / "qa1_x_test.txt"
        path.write_text(STORY.replace("Bob", "Cat"))
        for raw in (first, second):
            builder = prepare(raw, folder, splits=("test",))
            task = dataclasses.replace(raw, data_dir=str(builder.data_path))
            self.assertEqual(task.records("test"), raw.records("test"))

    def test_download(self):
        paths = {"archive": self.babi()}
        with mock.patch.object(
            tfds.download.DownloadManager, "download_and_extract", return_value=paths
        ) as download:
            builder = prepare(BabiConfig(variant="en"), self.create_tempdir().full_path)
        download.assert_called_once_with(BabiConfig.urls)
        self.assertEqual(builder.info.splits["test"].num_examples, 2)

    def test_download_of_single_files(self):
        text = "Ann saw 東京."
        answers = [{"text": "東京", "answer_start": 8}]
        questions = [{"id": "q", "question": "What?", "answers": answers}]
        paragraphs = [{"context": text, "qas": questions}]
        articles = [{"title": str(i), "paragraphs": paragraphs} for i in range(2)]
        content = json.dumps({"data": articles})
        folder = self.folder({"first_train.json": content, "then_dev.json": content})
        paths = {"train": f"{folder}/first_train.json", "dev": f"{folder}/then_dev.json"}
        task = SquadConfig()
        with mock.patch.object(
            tfds.download.DownloadManager, "download_and_extract", return_value=paths
        ):
            builder = prepare(task, self.create_tempdir().full_path)
        task = dataclasses.replace(task, data_dir=str(builder.data_path))
        record = task.source("test").record(1)
        self.assertEqual((record.context, record.answers), (text, ("東京",)))
        self.assertEqual(record.answer_starts, (8,))

    def test_some_splits(self):
        raw = BabiConfig(data_dir=self.babi(), variant="en")
        builder = prepare(raw, self.create_tempdir().full_path, splits=("test",))
        task = dataclasses.replace(raw, data_dir=str(builder.data_path))
        self.assertLen(task.records("test").kept, 2)
        with self.assertRaisesRegex(ValueError, "no split 'train'"):
            task.records("train")

    def test_records_of_another_task_are_refused(self):
        story = STORY.replace("Ann", "Mary").replace("Bob", "John")
        files = self.folder({f"en/qa1_x_{part}.txt": story for part in ("train", "test")})
        raw = BabiConfig(data_dir=files, variant="en", varied_copies=1)
        builder = prepare(raw, self.create_tempdir().full_path)
        folder = str(builder.data_path)
        task = dataclasses.replace(raw, data_dir=folder)
        self.assertEqual(task.tokenizer.vocab_size, raw.tokenizer.vocab_size)
        self.assertEqual(task.records("train"), raw.records("train"))
        for other in (
            dataclasses.replace(task, varied_copies=0),
            dataclasses.replace(task, qa=2),
            SquadConfig(data_dir=folder),
        ):
            message = f"holds babi_qa1_en_copies1, this task reads {other.data_name}"
            with self.assertRaisesRegex(ValueError, message):
                other.records("test")

    def test_names_of_data(self):
        paths = [("t.json", "d.json"), ("a/t.json", "d.json"), ("b/t.json", "d.json")]
        tasks = [SquadConfig(train_file=train, test_file=test) for train, test in paths]
        self.assertLen({task.data_name for task in tasks}, 3)
        self.assertEqual(tasks[0].data_name, "squad_t.json_d.json")
        splits = [WikiTextConfig(train_file=f"{folder}/wiki.train.raw") for folder in "ab"]
        self.assertNotEqual(splits[0].data_name, splits[1].data_name)

    def test_refusals(self):
        with self.assertRaisesRegex(ValueError, "splits='dev'"):
            prepare(BabiConfig(), "unused", splits=("dev",))
        with self.assertRaisesRegex(ValueError, "cannot be downloaded; set its data_dir"):
            prepare(TextSpansConfig(), "unused")


if __name__ == "__main__":
    absltest.main()
