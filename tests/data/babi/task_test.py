"""bAbI: stories and questions, splits, stand-ins for a missing file, damaged lines."""

import dataclasses
import gzip
import itertools
import pathlib
from unittest import mock

import chex
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.data.babi.task import BabiConfig
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.losses import IGNORE
from gradmem_jax.tokenizers.text_tokenizer import UNKNOWN
from tests.shared_data import data_dir

PLACES = (
    "attic",
    "bridge",
    "cellar",
    "dock",
    "estate",
    "forest",
    "garden",
    "hotel",
    "island",
    "jail",
)


def story(first, second):
    return (
        f"1 Ann went to the {first}.\n"
        "2 Bob slept.\n"
        f"3 Where is Ann? \t{first}\t1\n"
        f"4 Ann went to the {second}.\n"
        f"5 Where was Ann? \t{first},{second}\t1 4\n"
    )


TRAIN = "".join(story(a, b) for a, b in zip(PLACES, PLACES[1:], strict=False)) + story("a", "z")
TEST = story("kitchen", "attic")


class BabiTest(parameterized.TestCase):
    def folder(self, files):
        folder = pathlib.Path(self.create_tempdir().full_path)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(text, bytes):
                (folder / name).write_bytes(text)
            else:
                (folder / name).write_text(text)
        return folder

    def task(self, train=TRAIN, test=TEST, **fields):
        files = {"en/qa1_x_train.txt": train, "en/qa1_x_test.txt": test}
        return BabiConfig(data_dir=str(self.folder(files)), variant="en", **fields)

    def test_samples(self):
        source = self.task().source("test")
        self.assertLen(source, 2)
        first, second = (source.record(i) for i in range(2))
        self.assertEqual(first.context, "Ann went to the kitchen. Bob slept.")
        self.assertEqual((first.question, first.answers), ("Where is Ann?", ("kitchen",)))
        self.assertEqual(second.id, "qa1_x_test:5")
        self.assertEqual(
            second.context, "Ann went to the kitchen. Bob slept. Ann went to the attic."
        )
        self.assertEqual(second.answers, ("kitchen,attic",))

        tokenizer, sample = self.task().tokenizer, source[1]
        self.assertEqual(tokenizer.decode(sample["context_ids"]).replace(" .", "."), second.context)
        labels = sample["labels"][0]
        target = labels[labels != IGNORE]
        self.assertEqual(tokenizer.decode(target), "kitchen , attic")
        self.assertEqual(target[-1], tokenizer.end_id)
        self.assertEqual(
            tokenizer.decode(sample["query_ids"][0][labels == IGNORE]), "Where was Ann ?"
        )
        np.testing.assert_array_equal(sample["value_mask"], sample["labels"] != IGNORE)
        self.assertEqual(sample["context_ids"].dtype, np.int32)

    def test_splits_share_no_story(self):
        task = self.task()
        train, validation = (task.source(split) for split in ("train", "validation"))
        self.assertEqual((len(train), len(validation)), (18, 2))
        contexts = [{s.record(i).context for i in range(len(s))} for s in (train, validation)]
        self.assertEmpty(contexts[0] & contexts[1])
        again = self.task(train=TRAIN + TRAIN).source("validation")  # twins stay together
        self.assertEqual({again.record(i).context for i in range(4)}, contexts[1])
        self.assertLen(task.source("train", 5), 5)
        self.assertEqual(task.source("train", 5).record(4), train.record(4))

    def test_missing_10k_file(self):
        task = BabiConfig(
            data_dir=str(
                self.folder(
                    {
                        "tasks_1-20_v1-2/en-valid-10k/qa3_valid.txt.gz": gzip.compress(
                            (story("a", "z") + story("b", "z")).encode()
                        ),
                        "tasks_1-20_v1-2/en/qa3_x_train.txt": TRAIN,
                        "tasks_1-20_v1-2/en-10k/qa3_x_test.txt": TEST,
                    }
                )
            ),
            qa=3,
        )
        with self.assertLogs("absl", "WARNING") as logs:
            total = sum(len(task.source(split)) for split in ("train", "validation"))
        self.assertEqual(total, 22)  # one story is in both files
        self.assertIn("en-valid-10k/qa3_valid.txt.gz and en/qa3_x_train.txt", logs.output[0])

    def test_damaged_lines_are_named(self):
        damaged = (
            "1 Ann slept.\n2 Where is Ann? \n3 Is Ann here? \tyes\t1\n"
            "1 Where is Bob?\tdock\t1\n2 Bob slept.\n3 Who slept?\t\t2\n"
            "1 Cat slept.\nCat woke up.\n3 Who slept?\tCat\t1\n"
            "1 Dan slept.\n3 Who slept?\tDan\t1\n" + TEST
        )
        task = self.task(test=damaged)
        with self.assertLogs("absl", "WARNING") as logs:
            source = task.source("test")
        self.assertLen(source, 3)
        self.assertIn("6 records skipped", logs.output[0])
        reasons = {skipped.id.split(":")[1]: skipped.reason for skipped in source.skipped}
        self.assertEqual(list(reasons), ["2", "4", "6", "8", "9", "11"])
        for number, reason in {
            "2": "no answer",
            "4": "before any story",
            "6": "no answer",
            "8": "line number 2 expected, not 'Cat'",
            "9": "damaged in line qa1_x_test:8",
            "11": "line number 2 expected, not '3'",
        }.items():
            self.assertIn(reason, reasons[number])

    def test_long_contexts(self):
        task = self.task(max_context_tokens=9)
        self.assertLen(task.source("test"), 1)
        self.assertEqual(
            task.source("test").skipped,
            (("qa1_x_test:5", "15 tokens of context, max_context_tokens=9"),),
        )
        with self.assertRaisesRegex(ValueError, "max_context_tokens=9; allow more"):
            self.task(max_context_tokens=9, long_contexts="error").source("test")

    def test_stages_share_what_is_read_and_tokenised(self):
        places = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
        stories = [
            f"1 John went to the {a}.\n2 Where is John?\t{a}\t1\n"
            f"3 Mary went to the {b}.\n4 Where is Mary?\t{b}\t3\n"
            for a, b in itertools.permutations(places, 2)
        ]
        whole = self.task("".join(stories[1:]), stories[0], varied_copies=2, queries_per_context=2)
        short = dataclasses.replace(whole, max_context_tokens=6)
        read = BabiConfig.read
        with mock.patch.object(BabiConfig, "read", autospec=True, side_effect=read) as reading:
            got, expected = short.source("train"), whole.source("train")
            self.assertEqual(short.context_buckets, (8,))
            self.assertEqual(whole.context_buckets, (8, 16))
        calls = [call.args for call in reading.call_args_list if "train" in call.args]
        self.assertLen(calls, len(set(calls)))
        fitting = [i for i, context in enumerate(expected.contexts) if len(context) <= 6]
        self.assertLen(got, len(fitting))
        self.assertBetween(len(got), 1, len(expected) - 1)
        for index, whole_index in enumerate(fitting):
            self.assertIs(got.contexts[index], expected.contexts[whole_index])
            self.assertEqual(got.record(index), expected.record(whole_index))
            chex.assert_trees_all_equal(got[index], expected[whole_index])

    def test_varied_copies(self):
        train = (
            "1 Mary took the milk to the garden.\n"
            "2 John gave Mary the apple.\n"
            "3 Mary went to the office.\n"
            "4 Where is the milk? \toffice\t1 3\n"
        )
        train += train.replace("Mary", "Sandra") + TRAIN
        plain, task = self.task(train), self.task(train, varied_copies=8)
        for split in ("validation", "test"):
            self.assertEqual(task.records(split), plain.records(split))
        originals, records = (t.records("train").kept for t in (plain, task))
        self.assertEqual(records[: len(originals)], originals)
        self.assertLen(records, 9 * len(originals))
        self.assertEqual(task.vocab_size, plain.vocab_size)
        unknown = task.tokenizer.backend.token_to_id(UNKNOWN)
        self.assertNotIn(unknown, np.concatenate(task.source("train").contexts))
        for record in records[len(originals) :]:
            self.assertRegex(record.id, r"qa1_x_train:\d+, copy [1-8]$")
        again = self.task(train, varied_copies=8).records("train")
        self.assertEqual(again.kept, records)

    def test_varied_copies_leave_out_held_out_questions(self):
        asked = lambda name, place: (
            f"1 {name} went to the {place}.\n2 Where is {name}? \t{place}\t1\n"
        )
        pairs = (("Mary", "garden"), ("John", "office"), ("Fred", "kitchen"), ("Bill", "hallway"))
        train = "".join(asked(*pair) for pair in pairs)
        asks = lambda test: {
            (record.context, record.question)
            for record in self.task(train, test, varied_copies=32).records("train").kept
        }
        held_out = ("Mary went to the kitchen.", "Where is Mary?")
        self.assertIn(held_out, asks(TEST))
        self.assertEqual(asks(TEST) - asks(TEST + asked("Mary", "kitchen")), {held_out})

    @parameterized.parameters(
        (dict(qa=21), "qa=21"),
        (dict(varied_copies=-1), "varied_copies=-1"),
        (dict(qa=6, varied_copies=1), "leave it 0 for qa=6"),
        (dict(qa=6, queries_per_context=2), "queries_per_context=2 .* leave it 1 for qa=6"),
        (dict(qa=6, query_tasks=(1,)), r"query_tasks=\(1,\) .* leave it \(\) for qa=6"),
        (dict(qa=6, ask_holders=True), "ask_holders=True .* leave it False for qa=6"),
        (dict(variant="de"), "variant='de'"),
        (dict(max_context_tokens=0), "max_context_tokens=0"),
        (dict(long_contexts="cut"), "long_contexts='cut'"),
    )
    def test_wrong_fields(self, fields, message):
        with self.assertRaisesRegex(ValueError, message):
            BabiConfig(**fields)

    def test_wrong_files(self):
        with self.assertRaisesRegex(ValueError, "split='dev'"):
            self.task().source("dev")
        with self.assertRaisesRegex(ValueError, "is empty"):
            self.task(test="\n").source("test")
        with self.assertRaisesRegex(ValueError, "no sample is left"):
            self.task(test="nothing\n").source("test")
        with self.assertRaisesRegex(ValueError, "no file en/qa2_"):
            BabiConfig(data_dir=self.task().data_dir, variant="en", qa=2).source("train")
        with self.assertRaisesRegex(ValueError, "does not exist"):
            BabiConfig(data_dir="/nowhere").source("train")
        packed = gzip.compress(TEST.encode())[:-9]
        files = {"en/qa1_x_test.txt.gz": packed, "en/qa1_x_train.txt": TRAIN}
        with self.assertRaisesRegex(ValueError, "cannot read .*qa1_x_test.txt.gz"):
            BabiConfig(data_dir=str(self.folder(files)), variant="en").source("test")

    @parameterized.parameters((1, 10_000, 72), (2, 10_000, 552), (4, 10_000, 16), (5, 10_000, 784))
    def test_published_files(self, qa, num_questions, longest):
        task = BabiConfig(data_dir=str(data_dir() / "babi"), qa=qa)
        train, validation, test = (task.source(s) for s in ("train", "validation", "test"))
        self.assertEqual(len(train) + len(validation), num_questions)
        self.assertBetween(len(validation), 950, 1050)
        self.assertLen(test, 1000)
        self.assertEmpty(train.skipped + validation.skipped + test.skipped)
        self.assertEqual(task.context_buckets[-1], longest)
        unknown = task.tokenizer.encode("[UNK]")[0]
        self.assertFalse(any(unknown in sample["context_ids"] for sample in train.first(100)))
        batch = next(make_iterator(train, 32, task=task, shuffle_seed=0))
        self.assertIn(batch["context_ids"].shape[1], task.context_buckets)
        self.assertEqual(batch["query_ids"].shape, (32, 1, *task.query_buckets))

    def test_published_stand_in(self):
        task = BabiConfig(data_dir=str(data_dir() / "babi"), qa=3)
        counts = [len(task.source(split)) for split in ("train", "validation", "test")]
        self.assertEqual(counts, [1730, 195, 1000])  # 385 stories of 5 questions

    def test_pretrained_tokenizer(self):
        path = str(data_dir() / "gpt2_tokenizer")
        source = self.task(tokenizer_path=path).source("test")
        tokenizer = self.task(tokenizer_path=path).tokenizer
        labels = source[1]["labels"][0]
        target = labels[labels != IGNORE]
        self.assertEqual(tokenizer.backend.decode(target[:-1]), " kitchen,attic")
        self.assertEqual(target[-1], tokenizer.end_id)


if __name__ == "__main__":
    absltest.main()
