"""Varied copies of bAbI stories: answers stay right by an interpreter of the stories."""

import re

import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.data.babi.copies import PEOPLE, PLACES, SYNONYMS, THINGS, _reordered, varied_copies
from gradmem_jax.data.babi.task import BabiConfig
from gradmem_jax.data.records import Record
from tests.data.babi.player import answers
from tests.shared_data import data_dir

MOVES = "|".join(SYNONYMS[0])
EXAMPLES = (
    (
        "Mary went to the garden. Mary took the milk there. John moved to the office. Mary "
        "journeyed to the kitchen. John got the apple there. Mary left the milk.",
        "Where is the milk?",
        "kitchen",
    ),
    ("Mary went to the garden. John moved to the office.", "Where is John?", "office"),
    (
        "Fred grabbed the apple there. Fred gave the apple to Bill. Mary passed the milk to Jeff. "
        "Bill handed the apple to Jeff.",
        "Who gave the apple to Jeff?",
        "Bill",
    ),
    (
        "The garden is west of the office. The kitchen is west of the garden.",
        "What is west of the garden?",
        "kitchen",
    ),
)


def is_right(record):
    return record.answers[0] in answers(record.context, record.question)


def name_counts(record):
    """How often the names of each kind occur, which exchanging them does not change."""
    text = " ".join((record.context, record.question, *record.answers))
    count = lambda names: sorted(len(re.findall(rf"\b{name}\b", text)) for name in names)
    return [count(names) for names in (PEOPLE, PLACES, THINGS)]


class BabiCopiesTest(parameterized.TestCase):
    @parameterized.parameters(*EXAMPLES)
    def test_answers_stay_right(self, context, question, answer):
        record = Record("a", context, question, (answer,))
        self.assertTrue(is_right(record))
        copies = list(varied_copies([record], 200))
        self.assertEqual([copy.id for copy in copies[:2]], ["a, copy 1", "a, copy 2"])
        self.assertGreater(len({copy.context for copy in copies}), 2)
        for copy in copies:
            self.assertTrue(is_right(copy), msg=copy)
            self.assertEqual(name_counts(copy), name_counts(record), msg=copy)
        self.assertEqual(list(varied_copies([record], 200)), copies)

    def test_what_varies(self):
        record = Record("a", *EXAMPLES[0][:2], EXAMPLES[0][2:])
        copies = list(varied_copies([record], 200))
        words = lambda text: set(re.findall(r"\w+", text))
        self.assertEqual(
            {copy.question for copy in copies}, {"Where is the milk?", "Where is the apple?"}
        )
        self.assertEqual({copy.answers[0] for copy in copies}, {"garden", "office", "kitchen"})
        firsts = {copy.context.split(". ")[0] for copy in copies}
        self.assertContainsSubset({"Mary went to the garden", "John moved to the office"}, firsts)
        known = words(record.context)
        for copy in copies:  # no word that the stories do not have
            self.assertContainsSubset(words(copy.context), known)
        verbs = [re.findall(MOVES, copy.context) for copy in copies]
        self.assertGreater(len(set(map(tuple, verbs))), 3)

    def test_equal_stories_have_other_copies(self):
        record = Record("a", *EXAMPLES[0][:2], EXAMPLES[0][2:])
        contexts = [copy.context for copy in varied_copies([record, record], 9)]
        self.assertNotEqual(contexts[:9], contexts[9:])

    def test_order_is_kept_where_statements_share_something(self):
        statements = ["Mary got the milk.", "Mary left the milk.", "John got the milk."]
        order = lambda text: [text.index(verb) for verb in ("Mary", "left", "John")]
        record = Record("a", " ".join(statements), "Where is the milk?", ("office",))
        with_names = [c for c in varied_copies([record], 50) if c.context.startswith("Mary")]
        self.assertNotEmpty(with_names)
        for copy in with_names:
            self.assertEqual(copy.context, record.context.replace("got", copy.context.split()[1]))
            self.assertEqual(order(copy.context), sorted(order(copy.context)))

    def test_every_order_that_is_allowed_occurs(self):
        rng = np.random.default_rng(0)
        involved = [frozenset("a"), frozenset("b"), frozenset("a"), frozenset("c")]
        orders = [tuple(_reordered(involved, rng)) for _ in range(500)]
        self.assertLen(set(orders), 12)  # of 24, those with the first before the third
        self.assertTrue(all(order.index(0) < order.index(2) for order in orders))

    def test_no_known_name(self):
        record = Record("a", "Ann went to the cellar.", "Where is Ann?", ("cellar",))
        with self.assertRaisesRegex(ValueError, "varied_copies=2: the stories have none of"):
            list(varied_copies([record], 2))

    @parameterized.parameters(1, 2, 3, 4, 5)
    def test_published_stories(self, qa):
        task = BabiConfig(data_dir=str(data_dir() / "babi"), qa=qa)
        records = task.records("test").kept[:500]
        right = [is_right(record) for record in records]
        self.assertGreater(sum(right), 495)  # two answers of QA5 are not the last gift
        copies = list(varied_copies(records, 2))
        self.assertEqual([is_right(copy) for copy in copies], [r for r in right for _ in range(2)])
        for copy, record in zip(copies, [r for r in records for _ in range(2)], strict=True):
            self.assertEqual(name_counts(copy), name_counts(record), msg=copy)
        names = set(PEOPLE + PLACES + THINGS)
        words = lambda texts: {w for r in texts for w in re.findall(r"\w+", r.context)}
        self.assertEqual(words(copies) & names, words(records) & names)


if __name__ == "__main__":
    absltest.main()
