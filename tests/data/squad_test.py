"""SQuAD: targets, sentences, references, splits by article, damaged records."""

import gzip
import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.data.squad import SquadConfig, sentences_around
from gradmem_jax.losses import IGNORE
from tests.shared_data import data_dir

CONTEXT = 'Dr. J. Low met 3 kings in the U.S. Navy. "Was it so?" It was late. Then he left.'


def question(context, *answers, id="q", text="Who?", **fields):
    found = [{"text": answer, "answer_start": context.find(answer)} for answer in answers]
    return {"id": id, "question": text, "answers": found} | fields


def article(title, context, *questions):
    return {"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}


def simple_articles(count):
    return [
        article(
            f"article {i}", f"Thing {i} is red.", question(f"Thing {i} is red.", "red", id=str(i))
        )
        for i in range(count)
    ]


class SquadTest(parameterized.TestCase):
    def task(self, dev=None, train=None, **fields):
        folder = pathlib.Path(self.create_tempdir().full_path)
        for name, articles in {"train-v1.1.json": train, "dev-v1.1.json.gz": dev}.items():
            if articles is not None:
                content = json.dumps({"version": "1.1", "data": articles}).encode()
                packed = gzip.compress(content) if name.endswith(".gz") else content
                (folder / name).write_bytes(packed)
        return SquadConfig(data_dir=str(folder), **fields)

    def test_samples(self):
        dev = [article("a", CONTEXT, question(CONTEXT, "3 kings", "kings", text=" Whom? "))]
        task = self.task(dev, simple_articles(3))
        source = task.source("test")
        self.assertLen(source, 1)
        record = source.record(0)
        self.assertEqual((record.id, record.context, record.question), ("q", CONTEXT, "Whom?"))
        self.assertEqual(record.answers, ("3 kings", "kings"))
        self.assertEqual([CONTEXT.index(a) for a in record.answers], list(record.answer_starts))
        labels, ids = source[0]["labels"][0], source[0]["query_ids"][0]
        decode = task.tokenizer.decode
        self.assertEqual(decode(ids[labels == IGNORE]), "question : Whom ? answer :")
        self.assertEqual(decode(ids[labels != IGNORE]), "3 kings")
        self.assertEqual(ids[-1], task.tokenizer.end_id)
        np.testing.assert_array_equal(source[0]["value_mask"][0], labels != IGNORE)

    @parameterized.parameters(
        ("3 kings", "Dr. J. Low met 3 kings in the U.S. Navy."),
        ("so", '"Was it so?"'),
        ("late", "It was late."),
        ('Navy. "Was', 'Dr. J. Low met 3 kings in the U.S. Navy. "Was it so?"'),
        ("Then he left.", "Then he left."),
        (CONTEXT, CONTEXT),
    )
    def test_sentences(self, answer, want):
        start = CONTEXT.index(answer)
        self.assertEqual(sentences_around(CONTEXT, start, start + len(answer)), want)
        task = self.task([article("a", CONTEXT, question(CONTEXT, answer))], simple_articles(2))
        source = SquadConfig(data_dir=task.data_dir, context="sentence").source("test")
        self.assertEqual(source.record(0).context, want)

    @parameterized.parameters(
        *((name, False) for name in ("Dr", "Mr", "Mrs", "Ms", "St", "Jr", "Sr", "No", "vs", "J")),
        *((word, True) for word in ("revs", "JNo", "MJ", "no")),
    )
    def test_what_ends_no_sentence(self, word, ends):
        first, second = f"It was {word}.", "Then he left."
        want = second if ends else f"{first} {second}"
        context = f"{first} {second} Why?"
        start = context.index("he")
        self.assertEqual(sentences_around(context, start, start + 2), want)

    def test_splits_by_article(self):
        train, dev = simple_articles(21), simple_articles(4)
        both = self.task(dev, train)
        ids = lambda task, split: {record.id for record in task.records(split).kept}
        counts = [len(ids(both, split)) for split in ("train", "validation", "test")]
        self.assertEqual(counts, [18, 3, 4])
        self.assertEmpty(ids(both, "train") & ids(both, "validation"))

        for only in (self.task(train), self.task(None, train)):
            with self.assertLogs("absl", "WARNING") as logs:
                parts = [ids(only, split) for split in ("train", "validation", "test")]
            self.assertEqual(str(logs.output).count("divided among all splits"), 1)
            self.assertEqual([len(part) for part in parts], [15, 3, 3])
            self.assertLen(set().union(*parts), 21)

    def test_files_of_ones_own(self):
        texts = [f"Ann saw {number} cats." for number in range(9)]
        parts = [article(None, text, question(text, "Ann")) for text in texts]
        untitled = [{"paragraphs": part["paragraphs"]} for part in parts]
        one = [{"title": "a", "paragraphs": [p for part in parts for p in part["paragraphs"]]}]
        for articles in (untitled, one, [{"paragraphs": one[0]["paragraphs"]}], parts):
            task = self.task(articles)
            counts = [len(task.source(split)) for split in ("train", "validation", "test")]
            self.assertEqual(counts, [7, 1, 1])
        with self.assertRaisesRegex(ValueError, "2 different paragraphs, .* give 3 or more"):
            self.task(parts[:2]).source("train")

    def test_damaged_records_are_named(self):
        context = "Ann saw a cat."
        missing = question(context, "cat", id="no question")
        del missing["question"]
        dev = [
            article(
                "a",
                context,
                question(context, "cat", id="good"),
                question(context, id="no answer"),
                question(context, " ", id="blank answer"),
                question(context, "dog", id="not there"),
                question(context, "cat", id="far")
                | {"answers": [{"text": "cat", "answer_start": 99}]},
                question(context, "cat", id="off")
                | {"answers": [{"text": "cat", "answer_start": 3}]},
                question(context, "cat", id="text")
                | {"answers": [{"text": "cat", "answer_start": "1"}]},
                question(context, "cat", id="empty question", text="  "),
                question(context, id="impossible", is_impossible=True),
                missing,
                "nonsense",
            ),
            article("b", "  ", question("", "", id="empty context")),
            {"title": "c", "paragraphs": [{"qas": []}]},
        ]
        task = self.task(dev, simple_articles(2))
        with self.assertLogs("absl", "WARNING") as logs:
            source = task.source("test")
        self.assertEqual([source.record(i).id for i in range(len(source))], ["good"])
        self.assertIn("12 records skipped (no answer: an answer is missing", logs.output[0])
        reasons = dict(source.skipped)
        for name, reason in {
            "no answer": "missing or empty",
            "blank answer": "missing or empty",
            "not there": "answer_start=-1 is outside",
            "far": "answer_start=99 is outside",
            "off": "'cat' is not in the context at its answer_start",
            "text": "missing or wrong: TypeError",
            "empty question": "the question is empty",
            "empty context": "the context is empty",
            "impossible": "is_impossible",
            "no question": "KeyError('question')",
            "a, paragraph 0, question 10": "AttributeError",
            "c, paragraph 0": "KeyError('context')",
        }.items():
            self.assertIn(reason, reasons[name])

    @parameterized.parameters(
        (b"not json", "is no SQuAD file"),
        (b'["data"]', "is no SQuAD file"),
        (b'{"data": []}', "no articles"),
        (b'{"data": [{"title": "a"}]}', "no articles"),
        (b"", "is empty"),
        (b"\xff\xfe", "cannot read"),
    )
    def test_wrong_file(self, content, message):
        task = self.task(simple_articles(2))
        (pathlib.Path(task.data_dir) / "train-v1.1.json").write_bytes(content)
        with self.assertRaisesRegex(ValueError, message):
            task.source("train")

    def test_refusals(self):
        with self.assertRaisesRegex(ValueError, "no file train-v1.1.json"):
            self.task().source("train")
        with self.assertRaisesRegex(ValueError, "context='word'"):
            SquadConfig(context="word")
        with self.assertRaisesRegex(ValueError, "must be two names"):
            SquadConfig(train_file="a", test_file="a")

    def test_published_files(self):
        folder = data_dir() / "squad"
        task = SquadConfig(
            data_dir=str(folder),
            context="sentence",
            tokenizer_path=str(data_dir() / "gpt2_tokenizer"),
        )
        sources = [task.source(split) for split in ("train", "validation", "test")]
        self.assertEqual(sum(len(source) for source in sources), 10_570)
        self.assertEmpty([skipped for source in sources for skipped in source.skipped])
        tokenizer = task.tokenizer
        for source in sources:
            for i in range(0, len(source), 50):
                record, labels = source.record(i), source[i]["labels"][0]
                target = labels[labels != IGNORE]
                self.assertEqual(
                    tokenizer.backend.decode(target[:-1].tolist()), f" {record.answers[0].strip()}"
                )
                self.assertEqual(target[-1], tokenizer.end_id)
                self.assertIn(record.answers[0], record.context)

        second = SquadConfig(data_dir=str(folder), test_file="squad-v2-5-articles.json")
        records = [second.records(split) for split in ("train", "validation", "test")]
        self.assertEqual(sum(len(part.kept) for part in records), 705)
        impossible = sum(len(part.skipped) for part in records)
        self.assertEqual(impossible, 1407 - 705)


if __name__ == "__main__":
    absltest.main()
