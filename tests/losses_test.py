"""Cross entropy against optax, and what does not count."""

from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from gradmem_jax import losses as losses_module
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


class LossesOfHiddenTest(parameterized.TestCase):
    """Logits of some tokens after the others: as all at once, derivatives too."""

    @parameterized.parameters(16, 17, 40, 64)
    def test_values_and_derivatives(self, length):
        self.enter_context(jax.enable_x64(True))
        rng = np.random.default_rng(0)
        hidden = jnp.asarray(rng.standard_normal((2, length, 5)))
        head = jnp.asarray(rng.standard_normal((5, 11)))
        labels = rng.integers(0, 11, (2, length))
        labels[1, length // 2 :] = IGNORE

        def total(hidden, head):
            values = losses_module.losses_of_hidden(lambda x: x @ head, hidden, labels)
            return jnp.square(values).sum(), values

        def curvature(hidden, head):
            gradient = jax.grad(lambda *args: total(*args)[0], argnums=(0, 1))
            direction = (jnp.cos(hidden), jnp.cos(head))
            return total(hidden, head)[1], jax.jvp(gradient, (hidden, head), direction)

        whole = curvature(hidden, head)
        limits = {"LARGEST_LOGITS": 2 * 16 * 11 * 8, "CHUNK_LOGITS": 1}
        with mock.patch.multiple(losses_module, **limits):
            made = [x.aval.shape for x in _results(jax.make_jaxpr(curvature)(hidden, head))]
            self.assertEqual((2, length, 11) in made, length == 16)
            parts = curvature(hidden, head)
        chex.assert_trees_all_close(parts, whole, rtol=1e-9, atol=1e-11)


def _results(program):
    """Everything that a program computes, in its loops too."""
    for equation in program.eqns:
        yield from equation.outvars
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _results(inner)


if __name__ == "__main__":
    absltest.main()
