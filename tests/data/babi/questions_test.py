"""Questions about bAbI stories: the published answers, and those of a second player."""

import collections
import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.data.babi.questions import questions
from gradmem_jax.data.babi.task import BabiConfig
from tests.data.babi.player import answers
from tests.shared_data import data_dir

STORY = (
    "Mary went to the garden. Mary took the milk there. John moved to the office. Mary journeyed "
    "to the kitchen. Mary handed the milk to John. John put down the milk."
)


class QuestionsTest(parameterized.TestCase):
    @parameterized.parameters(
        (1, STORY, {"Where is Mary?": "kitchen", "Where is John?": "office"}),
        (2, STORY, {"Where is the milk?": "office"}),
        (
            3,
            STORY,
            {
                "Where was the milk before the kitchen?": "garden",
                "Where was the milk before the office?": "kitchen",
            },
        ),
        (2, "Mary took the milk.", {}),
        (
            4,
            "The garden is west of the office. The kitchen is west of the garden.",
            {
                "What is west of the office?": "garden",
                "What is west of the garden?": "kitchen",
                "What is east of the kitchen?": "garden",
                "What is east of the garden?": "office",
                "What is the garden west of?": "office",
                "What is the kitchen west of?": "garden",
                "What is the office east of?": "garden",
                "What is the garden east of?": "kitchen",
            },
        ),
        (
            4,
            "The garden is west of the office. The kitchen is west of the office.",
            {
                "What is east of the kitchen?": "office",
                "What is east of the garden?": "office",
                "What is the garden west of?": "office",
                "What is the kitchen west of?": "office",
            },
        ),
        (
            5,
            "Fred gave the apple to Bill. Bill passed the apple to Fred.",
            {
                "What did Fred give to Bill?": "apple",
                "Who did Fred give the apple to?": "Bill",
                "Who gave the apple to Bill?": "Fred",
                "What did Bill give to Fred?": "apple",
                "Who did Bill give the apple to?": "Fred",
                "Who gave the apple to Fred?": "Bill",
                "Who received the apple?": "Fred",
                "Who gave the apple?": "Bill",
            },
        ),
    )
    def test_answers(self, qa, story, expected):
        self.assertEqual(questions(story, qa), expected)

    def test_holders(self):
        asked = {"Where is the milk?": "office", "Who has the milk?": "nobody"}
        self.assertEqual(questions(STORY, 2, holders=True), asked)
        before = STORY.removesuffix(" John put down the milk.")
        self.assertEqual(questions(before, holders=True), {"Who has the milk?": "John"})

    def test_white_space_behind_a_story(self):
        for end in (" ", "\n", ".\r\n"):
            self.assertEqual(questions(STORY + end, 2), questions(STORY, 2))

    def test_unknown_statement(self):
        with self.assertRaisesRegex(ValueError, "'Mary sang' is no statement of bAbI tasks 1 to 5"):
            questions("Mary went to the garden. Mary sang.", 1)

    @parameterized.parameters(1, 2, 3, 4, 5)
    def test_published_stories(self, qa):
        task = BabiConfig(data_dir=str(data_dir() / "babi"), qa=qa)
        records = task.records("test").kept[:500]
        found = [questions(record.context, qa, holders=True) for record in records]
        right = [
            played.get(record.question) == record.answers[0]
            for played, record in zip(found, records, strict=True)
        ]
        self.assertGreater(sum(right), 495)  # two answers of QA5 are not the last gift
        for record, asked in zip(records[::5], found[::5], strict=True):
            for question, answer in asked.items():
                self.assertEqual(answers(record.context, question), {answer}, msg=record)


class QueriesPerContextTest(parameterized.TestCase):
    @parameterized.parameters(
        *((1, 3), (2, 3), (2, 5, (1, 2)), (3, 4), (4, 5), (5, 4), (5, 6, (1,))),
        *((2, 6, (1, 2), True), (5, 3, (), True)),
    )
    def test_samples(self, qa, count, query_tasks=(), ask_holders=False):
        one = BabiConfig(data_dir=str(data_dir() / "babi"), qa=qa, variant="en")
        others = {"query_tasks": query_tasks, "ask_holders": ask_holders}
        task = dataclasses.replace(one, queries_per_context=count, **others)
        source, tokenizer = task.source("train"), task.tokenizer
        self.assertLen(source, len(one.source("train")))
        self.assertEqual(one.context_buckets, task.context_buckets)
        self.assertEqual(one.query_buckets, task.query_buckets)
        asked = []
        for i in range(0, len(source), 7):
            sample, record = source[i], source.record(i)
            self.assertLen(sample["query_ids"], count)
            np.testing.assert_array_equal(sample["query_ids"], source[i]["query_ids"])
            has_target = sample["labels"] >= 0
            np.testing.assert_array_equal(sample["value_mask"], has_target)
            np.testing.assert_array_equal(
                sample["labels"][has_target], sample["query_ids"][has_target]
            )
            story = {record.question: record.answers[0]}
            for asked_qa in query_tasks or (qa,):
                story |= questions(record.context, asked_qa, holders=ask_holders)
            self.assertEqual(has_target.any(axis=1).sum(), min(count, len(story)), msg=record)
            told = []
            for ids, target in zip(sample["query_ids"], has_target, strict=True):
                if target.any():
                    question = tokenizer.decode(ids[~target & (ids != task.pad_id)])
                    told.append((question, tokenizer.decode(ids[target])))
            self.assertLen({question for question, _ in told}, len(told))
            spaced = lambda text: text.replace("?", " ?")
            self.assertEqual(told[0], (spaced(record.question), record.answers[0]))
            self.assertContainsSubset(told[1:], [(spaced(q), a) for q, a in story.items()])
            asked += told
        self.assertGreater(len(set(asked)), 10)
        for split in ("validation", "test"):
            self.assertLen(task.source(split)[0]["query_ids"], 1)

    def test_other_questions_are_drawn_anew_for_each_sample(self):
        path = str(data_dir() / "babi")
        source = BabiConfig(data_dir=path, variant="en", queries_per_context=2).source("train")
        drawn = collections.defaultdict(set)
        for i in range(100):
            record, sample = source.record(i), source[i]
            others = tuple(q for q in questions(record.context, 1) if q != record.question)
            question = sample["query_ids"][1][sample["labels"][1] < 0]
            drawn[others].add(tuple(question.tolist()))
        self.assertGreater(sum(len(asked) > 1 for asked in drawn.values()), 5)

    def test_other_questions_may_be_longer(self):
        one = BabiConfig(data_dir=str(data_dir() / "babi"), qa=2, variant="en")
        task = dataclasses.replace(one, queries_per_context=4, query_tasks=(3,))
        self.assertEqual((one.query_buckets, task.query_buckets), ((8,), (16,)))
        source, before = task.source("train"), task.tokenizer.encode("before")[0]
        asked = sum(int((source[i]["query_ids"] == before).any(axis=1).sum()) for i in range(100))
        expected = sum(
            min(3, len(questions(source.record(i).context, 3).keys() - {source.record(i).question}))
            for i in range(100)
        )
        self.assertGreater(expected, 50)
        self.assertEqual(asked, expected)

    def test_what_is_held_out_is_not_asked(self):
        task = BabiConfig(
            data_dir=str(data_dir() / "babi"), variant="en", varied_copies=3, queries_per_context=4
        )
        held_out = {
            (record.context, record.question)
            for split in ("validation", "test")
            for record in task.records(split).kept
        }
        source, tokenizer = task.source("train"), task.tokenizer
        possible = 0
        contexts = {context for context, _ in held_out}
        for i in range(len(source)):
            record = source.record(i)
            if record.context not in contexts:
                continue
            sample = source[i]
            asked = [
                tokenizer.decode(ids[(labels < 0) & (ids != task.pad_id)]).replace(" ?", "?")
                for ids, labels in zip(sample["query_ids"], sample["labels"], strict=True)
            ]
            others = questions(record.context, 1).keys() - {record.question}
            left_out = {question for question in others if (record.context, question) in held_out}
            self.assertEmpty(left_out & set(asked[1:]))
            possible += len(left_out)
        self.assertGreater(possible, 0)

    def test_refused(self):
        with self.assertRaisesRegex(ValueError, "queries_per_context=2 needs stories that can be"):
            BabiConfig(qa=6, queries_per_context=2)
        with self.assertRaisesRegex(ValueError, "queries_per_context"):
            BabiConfig(queries_per_context=0)
        with self.assertRaisesRegex(ValueError, "query_tasks"):
            BabiConfig(query_tasks=(6,))


if __name__ == "__main__":
    absltest.main()
