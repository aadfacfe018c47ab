"""Exact match and F1: expected values follow from the rules of SQuAD v1.1 by hand."""

from absl.testing import absltest, parameterized

from gradmem_jax.data import squad_metrics


class MetricsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("The  Eiffel\tTower.", "eiffel tower"),
        ("well-known", "wellknown"),  # punctuation goes without a blank
        ("an A-level in the theatre", "alevel in theatre"),  # articles are whole words
        ("U.S.", "us"),
        ("ÉCOLE Übung", "école übung"),
        ("«la» – fin", "«la» – fin"),  # only ASCII punctuation goes
        ("the a an", ""),
        ("", ""),
    )
    def test_normalisation(self, text, want):
        self.assertEqual(squad_metrics.normalize_answer(text), want)

    @parameterized.parameters(
        ("Denver Broncos", ["The Denver Broncos!"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
        ("the cat sat", ["cat sat down there"], 0, 2 * 1 * 0.5 / 1.5),
        ("to to be", ["to be or not to be"], 0, 6 / 9),  # to twice, be once
        ("to to to", ["to be"], 0, 2 / 5),  # a word counts as often as both have it
        ("red", ["blue", "red wine", "red"], 1, 1),  # the best reference counts
        ("red", ["blue", "red wine"], 0, 2 / 3),
        ("well known", ["well-known"], 0, 0),
        ("", ["something"], 0, 0),
        ("the", ["a"], 1, 0),  # both empty: equal, but no common word
        ("1,000", ["1000"], 1, 1),
    )
    def test_scores(self, prediction, answers, exact, f1):
        self.assertEqual(squad_metrics.exact_match(prediction, answers), exact)
        self.assertAlmostEqual(squad_metrics.f1(prediction, answers), f1)

    @parameterized.parameters(([],), ("text",))
    def test_refusals(self, answers):
        for metric in (squad_metrics.exact_match, squad_metrics.f1):
            with self.assertRaisesRegex(ValueError, "reference answers"):
                metric("x", answers)


if __name__ == "__main__":
    absltest.main()
