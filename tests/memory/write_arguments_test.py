"""What a WRITE can be told: losses that are differentiated, alpha, K and tolerance by sample."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from gradmem_jax import GradMem, WritePrediction, write_context
from gradmem_jax.losses import mean_per_sample, token_losses
from gradmem_jax.methods import METHODS
from tests.small import random_ids, small_model, small_params, small_writer

CONTEXT = random_ids(0, 3, 9)
CONTEXT[1, 6:] = 0
QUERY = random_ids(1, 3, 4)
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def in_float64(model, seed=0):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), small_params(model, seed))


def losses_by_hand(model, params, context, steps, mode):
    """WRITE losses [K, B] of a plain loop, and the memory; `mode` as in `gradient_mode`."""

    def total(memory):
        losses = mean_per_sample(model.write_token_losses(params, memory, context), context - 1)
        return losses.sum(), losses

    memory, rows = model.initial_memory(params, len(context)), []
    for _ in range(steps):
        if mode == "none":
            memory = jax.lax.stop_gradient(memory)
        gradient, losses = jax.grad(total, has_aux=True)(memory)
        rows.append(losses)
        gradient = gradient if mode == "second" else jax.lax.stop_gradient(gradient)
        memory = memory - model.config.write_learning_rate * gradient
    return jnp.stack(rows), memory


class LossesTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("one_step", "second", 1),
        ("two_steps", "second", 2),
        ("three_steps", "second", 3),
        ("first", "first", 2),
        ("none", "none", 2),
    )
    @pytest.mark.slow_cases("one_step")  # a kept step is the last of two as well
    def test_losses_are_differentiated(self, mode, steps):
        with jax.enable_x64(True):
            lm = dict(dtype="float64", param_dtype="float64")
            model = small_model(lm=lm, gradient_mode=mode, num_write_steps=steps)
            params = in_float64(model)
            weights = np.random.default_rng(0).normal(size=(steps, 3))

            def ours(params):
                return (model.write_memory(params, CONTEXT)[1].losses * weights).sum()

            def by_hand(params):
                return (losses_by_hand(model, params, CONTEXT, steps, mode)[0] * weights).sum()

            want = jax.jit(jax.grad(by_hand))(params)
            got = jax.jit(jax.grad(ours))(params)
            chex.assert_trees_all_close(got, want, rtol=1e-8, atol=1e-10)
            self.assertGreater(float(jnp.abs(got["write_head"]).max()), 1e-3)

    @parameterized.parameters(dict(meta_gradient="reverse"), dict(second_order_steps=1), {})
    def test_losses_against_central_differences(self, **options):
        with jax.enable_x64(True):
            model = small_model(lm=dict(dtype="float64", param_dtype="float64"), **options)
            params = in_float64(model)

            @jax.jit
            @jax.value_and_grad
            def loss(memory):
                _, info = model.write_memory(params, CONTEXT, memory=memory)
                return info.losses[0].sum() + 0.1 * info.losses[-1].sum()

            memory = model.initial_memory(params, 3)
            _, gradient = loss(memory)
            direction = np.random.default_rng(0).normal(size=memory.shape)
            ahead, behind = (loss(memory + e * direction)[0] for e in (1e-5, -1e-5))
            if "second_order_steps" not in options:
                slope = (ahead - behind) / 2e-5
                np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=1e-6)
            # A first-order step leaves out a part of the derivative, but not all of it.
            self.assertGreater(float(jnp.abs(gradient).max()), 1e-4)

    @parameterized.parameters("second", "first", "none")
    def test_unused_losses_cost_nothing(self, mode):
        model = small_model(gradient_mode=mode, num_write_steps=3)
        params = small_params(model)

        def cost(use_losses):
            def loss(params):
                memory, info = model.write_memory(params, CONTEXT)
                if use_losses == "no":
                    info = jax.lax.stop_gradient(info)
                return jnp.square(memory).sum() + (info.losses.sum() if use_losses == "yes" else 0)

            compiled = jax.jit(jax.grad(loss)).lower(params).compile()
            return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

        self.assertEqual(cost("unused"), cost("no"))
        if mode != "second":
            self.assertGreater(cost("yes")[0], 1.02 * cost("unused")[0])


class RateTest(parameterized.TestCase):
    def test_a_given_rate_is_the_configured_one(self):
        model, other = small_model(), small_model(write_learning_rate=0.7)
        params = small_params(model)
        want = other.write_memory(params, CONTEXT)
        for rate in (0.7, np.float32(0.7), jnp.full(3, 0.7)):
            close(model.write_memory(params, CONTEXT, write_learning_rate=rate), want)

    def test_in_place_of_a_learned_one(self):
        learned = small_model(learned_write_learning_rate="token")
        params = small_params(learned)
        got = learned.write_memory(params, CONTEXT, write_learning_rate=0.7)[0]
        plain = small_model(write_learning_rate=0.7)
        del params["log_write_learning_rate"]
        close(got, plain.write_memory(params, CONTEXT)[0])

    def test_of_each_sample_and_mapped(self):
        model = small_model(memory_projection="per_sample")
        params = small_params(model)
        rates = jnp.array([0.1, 0.5, 0.9])
        each = [model.write_memory(params, CONTEXT, write_learning_rate=r)[0] for r in rates]
        mapped = jax.vmap(lambda r: model.write_memory(params, CONTEXT, write_learning_rate=r)[0])(
            rates
        )
        got = model.write_memory(params, CONTEXT, write_learning_rate=rates)[0]
        for i in range(3):
            close(jax.tree.map(lambda x, i=i: x[i], mapped), each[i])
            close(*(jax.tree.map(lambda x, i=i: x[i], tree) for tree in (got, each[i])))

    @parameterized.parameters("mixed", "reverse")
    def test_gradient_against_central_differences(self, meta_gradient):
        with jax.enable_x64(True):
            lm = dict(dtype="float64", param_dtype="float64")
            model = small_model(lm=lm, meta_gradient=meta_gradient)
            params = in_float64(model)

            @jax.jit
            @jax.value_and_grad
            def loss(rate):
                memory, info = model.write_memory(params, CONTEXT, write_learning_rate=rate)
                return model.read_memory(params, memory, QUERY).std() + info.losses.sum()

            slope = (loss(0.5 + 1e-5)[0] - loss(0.5 - 1e-5)[0]) / 2e-5
            np.testing.assert_allclose(loss(0.5)[1], slope, rtol=1e-6)

    def test_refusals(self):
        model = small_model()
        params = small_params(model)
        for rate, message in (
            (-1.0, "0 or more"),
            (np.nan, "number"),
            (np.inf, "finite"),
            (1e300, "finite"),
            (0.5 + 2j, "must be a number"),
            (jnp.ones(2), "3 samples"),
        ):
            with self.assertRaisesRegex(ValueError, f"write_learning_rate=.*{message}"):
                model.write_memory(params, CONTEXT, write_learning_rate=rate)
            with self.assertRaisesRegex(ValueError, f"write_learning_rate=.*{message}"):
                write_context(model, params, CONTEXT[:, None], write_learning_rate=rate)
        with self.assertRaisesRegex(ValueError, "loss_tolerance=.*must be a number"):
            model.write_memory(params, CONTEXT, loss_tolerance=1j)
        stopped, _ = model.write_memory(params, CONTEXT, loss_tolerance=np.inf)
        chex.assert_trees_all_equal(stopped, model.initial_memory(params, 3))
        with self.assertRaisesRegex(ValueError, "carries its own"):
            small_model(optax.sgd(0.1)).write_memory(params, CONTEXT, write_learning_rate=1.0)


class PerSampleTest(parameterized.TestCase):
    @parameterized.named_parameters((name, name) for name in METHODS)
    @pytest.mark.slow_cases("kv_prefix", "warm_start", "lact", "ttt_linear", "mamba")
    def test_steps_of_each_sample(self, name):
        model = small_writer(name)
        params = small_params(model)
        steps = np.array([0, 1, 2])
        want = [model.write_memory(params, CONTEXT[i : i + 1], num_steps=i)[0] for i in range(3)]
        want = jax.tree.map(lambda *x: jnp.concatenate(x), *want)
        tolerance = dict(rtol=1e-4, atol=1e-4 if name == "lact" else 1e-5)
        got, info = model.write_memory(params, CONTEXT, num_steps=steps)
        chex.assert_trees_all_close(got, want, **tolerance)
        taken = np.minimum(steps, 1) if model.one_pass else steps
        np.testing.assert_array_equal(info.num_steps, taken)
        traced = jax.jit(lambda k: model.write_memory(params, CONTEXT, num_steps=k, max_steps=4))
        chex.assert_trees_all_close(traced(steps)[0], want, **tolerance)
        if name != "full_context":
            in_segments, _ = write_context(model, params, CONTEXT[:, None], num_steps=[0, 1, 2])
            chex.assert_trees_all_close(in_segments, want, **tolerance)

    def test_the_second_order_steps_are_the_last_of_each_sample(self):
        model = small_model(second_order_steps=1)
        params = small_params(model)

        @functools.partial(jax.jit, static_argnames="k")
        def gradient_alone(context, k):
            return gradient(context, k, 0)

        def gradient(context, k, sample):
            def loss(params):
                memory, _ = model.write_memory(params, context, num_steps=k)
                return (memory[sample] ** 2).sum()

            return jax.grad(loss)(params)["write_head"]

        together = jax.jit(lambda sample: gradient(CONTEXT, np.array([1, 2, 3]), sample))
        for i, k in ((0, 1), (2, 3)):
            want = gradient_alone(CONTEXT[i : i + 1], k)
            close(together(i), want, rtol=1e-4, atol=1e-5)

    def test_tolerance_of_each_sample(self):
        model = small_model(num_write_steps=3)
        params = small_params(model)
        losses = model.write_memory(params, CONTEXT)[1].losses
        tolerance = jnp.array([losses[1, 0] + 1e-3, 0.0, losses[0, 2] + 1e-3])
        _, info = model.write_memory(params, CONTEXT, loss_tolerance=tolerance)
        np.testing.assert_array_equal(info.num_steps, [1, 3, 0])

    def test_refusals(self):
        model = small_model()
        params = small_params(model)
        for steps in ([1, 2], [[1, 2, 3]], [1.0, 2.0, 3.0]):
            with self.assertRaisesRegex(ValueError, "one for each of the 3 samples"):
                model.write_memory(params, CONTEXT, num_steps=np.array(steps))
        with self.assertRaisesRegex(ValueError, "num_steps holds -1"):
            model.write_memory(params, CONTEXT, num_steps=np.array([1, -1, 2]))
        with self.assertRaisesRegex(ValueError, "num_steps holds 3, more than max_steps=2"):
            model.write_memory(params, CONTEXT, num_steps=np.array([1, 3, 2]), max_steps=2)


def weighted(prediction: WritePrediction, weights: jax.Array) -> jax.Array:
    """Cross entropy of tokens, each with its weight [B, S]."""
    losses = token_losses(prediction.logits, prediction.labels)
    return (losses * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1e-6)


def masked(prediction: WritePrediction, chosen: jax.Array) -> jax.Array:
    """Cross entropy of chosen tokens, bool [B, S]."""
    labels = jnp.where(chosen, prediction.labels, -100)
    return mean_per_sample(token_losses(prediction.logits, labels), labels)


def distilled(prediction: WritePrediction, teacher: jax.Array) -> jax.Array:
    """Squared distance to a teacher's hidden states [B, S, d]."""
    return jnp.square(prediction.hidden - teacher).mean(axis=(1, 2))


class WriteLossTest(parameterized.TestCase):
    def test_weights_of_one_are_the_usual_loss(self):
        usual = small_model()
        params = small_params(usual)
        model = GradMem(usual.config, write_loss=weighted)
        weights = (CONTEXT != 0).astype(np.float32)
        got = model.write_memory(params, CONTEXT, loss_data=weights)
        close(got, usual.write_memory(params, CONTEXT))

    @parameterized.parameters("mixed", "reverse")
    def test_gradient_of_weights_against_central_differences(self, meta_gradient):
        with jax.enable_x64(True):
            lm = dict(dtype="float64", param_dtype="float64")
            config = small_model(lm=lm, meta_gradient=meta_gradient).config
            model = GradMem(config, write_loss=weighted)
            params = in_float64(model)
            rng = np.random.default_rng(0)
            weights, direction = (rng.uniform(0.5, 1, CONTEXT.shape) for _ in range(2))

            @jax.jit
            @jax.value_and_grad
            def loss(weights):
                memory, _ = model.write_memory(params, CONTEXT, loss_data=weights)
                return (model.read_memory(params, memory, QUERY) ** 2).mean()

            ahead, behind = (loss(weights + e * direction)[0] for e in (1e-5, -1e-5))
            got = jnp.vdot(loss(weights)[1], direction)
            np.testing.assert_allclose(got, (ahead - behind) / 2e-5, rtol=1e-6)

    def test_tokens_that_are_masked_do_not_matter(self):
        config = small_model(write_head=True).config
        model = GradMem(config, write_loss=masked)
        params = small_params(model)
        last_changed = CONTEXT.copy()
        last_changed[0, -1] = last_changed[0, -1] % 10 + 1
        chosen = np.ones(CONTEXT.shape, bool)
        chosen[:, -1] = False
        one, other = (
            model.write_memory(params, ids, loss_data=chosen)[0] for ids in (CONTEXT, last_changed)
        )
        close(one, other)
        one, other = (
            model.write_memory(params, ids, loss_data=np.ones(CONTEXT.shape, bool))[0]
            for ids in (CONTEXT, last_changed)
        )
        self.assertGreater(float(jnp.abs(one - other).max()), 1e-3)

    def test_a_step_descends_the_distance_to_a_teacher(self):
        model = GradMem(small_model(num_write_steps=4).config, write_loss=distilled)
        params = small_params(model)
        hidden, _ = model.apply_lm(params, model.embed(params, CONTEXT))
        model_steps = functools.partial(model.write_memory, params, loss_data=hidden)
        _, info = model_steps(CONTEXT, write_learning_rate=0.1)
        self.assertTrue((np.diff(info.losses, axis=0) < 0).all())
        parts = GradMem(model.config, write_loss=distilled, num_write_parts=3)
        got = parts.write_memory(params, CONTEXT, loss_data=hidden, write_learning_rate=0.1)
        close(got[1].losses, info.losses)

    def test_refusals(self):
        usual = small_model()
        params = small_params(usual)
        model = GradMem(usual.config, write_loss=weighted)
        with self.assertRaisesRegex(ValueError, "no write_loss that could use it"):
            usual.write_memory(params, CONTEXT, loss_data=np.ones((3, 9)))
        with self.assertRaisesRegex(ValueError, r"loss_data .* leading axis of the 3"):
            model.write_memory(params, CONTEXT, loss_data=np.ones((2, 9)))
        with self.assertRaisesRegex(ValueError, "write_loss=3 must be a function"):
            GradMem(usual.config, write_loss=3)
        scalar = GradMem(usual.config, write_loss=lambda prediction, _: prediction.logits.mean())
        with self.assertRaisesRegex(AssertionError, r"write_loss must return \[B\]"):
            scalar.write_memory(params, CONTEXT)


if __name__ == "__main__":
    absltest.main()
