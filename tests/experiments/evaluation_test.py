"""Evaluation over batches against evaluation at once, and confidence intervals."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments.evaluation import confidence_interval, evaluate_params, sample_answers
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
from tests.small import small_model, small_params

DATA = KVRetrievalConfig(num_pairs=2, key_length=1, value_length=1, alphabet_size=3)
MODEL = small_model()
PARAMS = small_params(MODEL)


class EvaluationTest(parameterized.TestCase):
    def test_batch_size_does_not_matter(self):
        run = lambda size: evaluate_params(
            MODEL, PARAMS, DATA, [0, 2], num_samples=10, batch_size=size
        )
        whole, parts = run(10), run(4)
        self.assertEqual(set(whole), {0, 2})
        for k in whole:
            flat = lambda tree: np.array(jax.tree.leaves(tree))
            np.testing.assert_allclose(flat(whole[k]), flat(parts[k]), rtol=1e-4)
        self.assertNotEqual(whole[0]["write_loss"], whole[2]["write_loss"])

    def test_answers_are_readable(self):
        lines = sample_answers(MODEL, PARAMS, DATA, count=2).splitlines()
        self.assertLen(lines, 4)
        self.assertRegex(lines[0], r"^context  !.:.!!.:.!\|$")
        self.assertRegex(lines[1], r"^  \?!.: -> .* \((right|wrong, it is .!\|)\)$")

    @parameterized.parameters((0.0, 100), (1.0, 100), (0.3, 50))
    def test_wilson_interval_solves_its_equation(self, rate, count):
        for bound in confidence_interval(rate, count):
            if 0 < bound < 1:
                distance = abs(rate - bound)
                self.assertAlmostEqual(distance, 1.96 * np.sqrt(bound * (1 - bound) / count))
        low, high = confidence_interval(rate, count)
        self.assertTrue(0 <= low <= rate <= high + 1e-12 <= 1 + 1e-12)
        self.assertGreater(high - low, 0.01)


if __name__ == "__main__":
    absltest.main()
