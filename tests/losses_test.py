"""Cross entropy against optax, and what does not count."""

import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from gradmem_jax.losses import IGNORE, mean_per_sample, token_losses


class LossesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.logits = rng.standard_normal((2, 4, 7)).astype(np.float32)
        self.labels = np.array([[1, 6, IGNORE, 0], [IGNORE, 2, 3, IGNORE]])

    def test_cross_entropy_of_targets_only(self):
        losses = token_losses(self.logits, self.labels)
        labels = np.maximum(self.labels, 0)
        want = optax.softmax_cross_entropy_with_integer_labels(self.logits, labels)
        np.testing.assert_allclose(losses, np.where(self.labels >= 0, want, 0), rtol=1e-5)

    def test_means_are_over_a_samples_own_targets(self):
        losses = token_losses(self.logits, self.labels)
        means = mean_per_sample(losses, self.labels)
        want = [np.asarray(losses)[0].sum() / 3, np.asarray(losses)[1].sum() / 2]
        np.testing.assert_allclose(means, want, rtol=1e-6)

    def test_sample_without_targets_has_no_loss(self):
        labels = np.full((2, 4), IGNORE)
        losses = token_losses(self.logits, labels)
        np.testing.assert_array_equal(mean_per_sample(losses, labels), [0, 0])

    def test_large_bfloat16_logits_are_summed_in_float32(self):
        logits = jnp.asarray(100 * self.logits, jnp.bfloat16)
        losses = token_losses(logits, self.labels)
        self.assertEqual(losses.dtype, jnp.float32)
        want = token_losses(np.asarray(logits, np.float32), self.labels)
        np.testing.assert_array_equal(losses, want)


if __name__ == "__main__":
    absltest.main()
