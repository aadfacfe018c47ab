"""The outer gradient: mixed mode, reverse mode, central differences and explicit loops agree."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from gradmem_jax.memory.inner_loop import orders_of_steps
from gradmem_jax.memory.meta_gradient import reverse_over_reverse, second_order
from gradmem_jax.training.losses import loss_and_metrics
from tests.small import small_batch, small_model, small_params

OPTIONS = {
    "scanned_layers_remat_inner_loss_shared_rate": dict(
        lm=dict(scan_layers=True, num_layers=2, remat="full"),
        inner_loss_weight=0.7,
        learned_write_learning_rate="shared",
    ),
    "lm_head_three_steps_projection_control_token_rate": dict(
        lm=dict(tied_head=True),
        write_head=False,
        num_write_steps=3,
        memory_projection="proj",
        num_control_tokens=2,
        learned_write_learning_rate="token",
    ),
    "per_sample_projection_dimension_rate_clip_norm": dict(
        memory_projection="per_sample",
        learned_write_learning_rate="dimension",
        write_learning_rate=0.3,
        clip_norm=0.2,
    ),
    "last_step_only_clipped": dict(
        second_order_steps=1, inner_loss_weight=0.5, clip_value=0.05, clip_norm=0.3
    ),
    "clip_and_momentum": dict(
        write_optimizer=optax.chain(optax.clip(0.1), optax.sgd(1.0, momentum=0.5))
    ),
    "adam": dict(write_optimizer=optax.adam(0.3, eps_root=1e-2)),
}
# Mixed mode of an option agrees with either reverse mode or central differences in little time.
SLOW_IN_DIFFERENCES = ("per_sample_projection_dimension_rate_clip_norm", "adam")
SLOW_IN_REVERSE = (
    "scanned_layers_remat_inner_loss_shared_rate",
    "lm_head_three_steps_projection_control_token_rate",
    "clip_and_momentum",
)

GRADIENTS = {
    "mixed": second_order,
    "kept": lambda loss_fn: second_order(loss_fn, keep=True),
    "reverse": reverse_over_reverse,
}


def loss_of(model, batch):
    return lambda params: loss_and_metrics(model, params, batch)[0]


class FloatSixtyFour(parameterized.TestCase):
    """Runs every test in float64, as central differences need it."""

    def setUp(self):
        super().setUp()
        self.enter_context(jax.enable_x64(True))

    def case(self, write_optimizer=None, lm=None, **changes):
        lm = dict(dtype="float64", param_dtype="float64") | (lm or {})
        model = small_model(write_optimizer, lm=lm, **changes)
        batch = small_batch()
        batch["context_ids"][1] = 0  # a gradient of exactly zero must not break clipping
        return model, small_params(model), batch


class ModesTest(FloatSixtyFour):
    def test_pullback_of_a_small_function(self):
        def loss_fn(fast, slow, constants):
            hidden = jnp.tanh(fast["m"] @ slow["w"]) * constants
            return jnp.log1p((hidden**2).sum(-1)) * jnp.exp(fast["s"])

        rng = np.random.default_rng(0)
        draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
        fast, slow = {"m": draw(4, 3), "s": draw(4)}, {"w": draw(3, 5)}
        constants = draw(4, 5)
        cotangents = (draw(4), {"m": draw(4, 3), "s": draw(4)})

        def pull(make):
            evaluate = make(loss_fn)
            value, pullback = jax.vjp(lambda f, s: evaluate(f, s, constants), fast, slow)
            return value, pullback(cotangents)

        pulled = jax.jit(lambda: [pull(make) for make in GRADIENTS.values()])()
        chex.assert_trees_all_close(pulled[0], pulled[1], rtol=1e-12)
        chex.assert_trees_all_close(pulled[0], pulled[2], rtol=1e-12)
        self.assertGreater(np.abs(pulled[0][1][1]["w"]).min(), 0)

    def test_the_gradient_of_a_gradient_in_a_scan(self):
        def loss_fn(fast, slow, constants):
            return ((fast * slow) ** 3).sum((1, 2))

        start = jnp.linspace(0.5, 1, 12).reshape(2, 2, 3)

        def distance(scale, mode):
            evaluate = GRADIENTS[mode](loss_fn)
            slow = scale * jnp.linspace(1, 1.5, 12).reshape(2, 2, 3)
            step = lambda fast, _: (fast - 0.1 * evaluate(fast, slow, ())[1], None)
            return (jax.lax.scan(step, start, length=2)[0] ** 2).sum()

        second = jax.grad(jax.grad(distance))
        mixed, kept, reverse = jax.jit(lambda: [second(1.0, mode) for mode in GRADIENTS])()
        np.testing.assert_allclose(mixed, reverse, rtol=1e-12)
        np.testing.assert_allclose(kept, reverse, rtol=1e-12)

    def test_the_gradient_of_a_gradient_through_write(self):
        model, params, batch = self.case(num_write_steps=3)  # one scan
        start = model.initial_memory(params, len(batch["context_ids"]))

        def size(scale):
            memory = model.write_memory(params, batch["context_ids"], memory=scale * start)[0]
            return (memory**2).sum()

        first_and_second = jax.jit(jax.value_and_grad(jax.grad(size)))
        h = 1e-5
        difference = (first_and_second(1 + h)[0] - first_and_second(1 - h)[0]) / (2 * h)
        np.testing.assert_allclose(first_and_second(1.0)[1], difference, rtol=1e-6)

    def test_forward_mode_over_the_outer_gradient(self):
        model, params, batch = self.case(num_write_steps=1)
        direction = jax.tree.map(jnp.cos, params)
        gradient = jax.grad(loss_of(model, batch))
        both = jax.jit(lambda params: jax.jvp(gradient, (params,), (direction,)))
        _, product = both(params)
        h = 1e-5
        moved = lambda s: both(jax.tree.map(lambda x, y: x + s * y, params, direction))[0]
        difference = jax.tree.map(lambda a, b: (a - b) / (2 * h), moved(h), moved(-h))
        chex.assert_trees_all_close(product, difference, rtol=1e-5, atol=1e-7)

    @parameterized.named_parameters((name, options) for name, options in OPTIONS.items())
    @pytest.mark.slow_cases(*SLOW_IN_REVERSE)
    def test_mixed_and_reverse_mode_agree(self, options):
        model, params, batch = self.case(**options)
        other, _, _ = self.case(**options, meta_gradient="reverse")
        mixed = jax.jit(jax.grad(loss_of(model, batch)))(params)
        reverse = jax.jit(jax.grad(loss_of(other, batch)))(params)
        chex.assert_trees_all_close(mixed, reverse, rtol=1e-7, atol=1e-10)

    @parameterized.named_parameters(
        (name, options)
        for name, options in OPTIONS.items()
        if "second_order_steps" not in options  # not the gradient of any function
    )
    @pytest.mark.slow_cases(*SLOW_IN_DIFFERENCES)
    def test_mixed_mode_and_central_differences_agree(self, options):
        model, params, batch = self.case(**options)
        loss_and_gradient = jax.jit(jax.value_and_grad(loss_of(model, batch)))
        _, mixed = loss_and_gradient(params)
        loss = lambda params: loss_and_gradient(params)[0]
        rng = np.random.default_rng(1)
        for part in params:
            only = lambda path, x, part=part: rng.standard_normal(x.shape) * (path[0].key == part)
            direction = jax.tree.map_with_path(only, params)
            h = 1e-5
            moved = lambda s, d=direction: jax.tree.map(lambda x, y: x + s * y, params, d)
            difference = (loss(moved(h)) - loss(moved(-h))) / (2 * h)
            product = sum(jax.tree.leaves(jax.tree.map(np.vdot, direction, mixed)))
            np.testing.assert_allclose(product, difference, rtol=2e-6, atol=1e-9, err_msg=part)

    @parameterized.parameters("first", "none")
    def test_cheap_modes_are_explicit_loops(self, mode):
        model, params, batch = self.case(
            gradient_mode=mode, inner_loss_weight=0.5, learned_write_learning_rate="shared"
        )
        labels = np.where(batch["context_ids"] == 0, -100, batch["context_ids"])

        def write_loss(params, memory):
            losses = model.write_token_losses(params, memory, batch["context_ids"])
            return losses.sum(axis=1) / np.maximum((labels >= 0).sum(axis=1), 1)

        def explicit(params):
            memory = model.initial_memory(params, 3)
            for _ in range(2):
                if mode == "none":
                    memory = jax.lax.stop_gradient(memory)
                inner = write_loss(params, memory).mean()
                gradient = jax.grad(lambda m: write_loss(params, m).sum())(memory)
                rate = jnp.exp(params["log_write_learning_rate"]["tokens"])
                memory = memory - rate * jax.lax.stop_gradient(gradient)
                if mode == "none":
                    memory = jax.lax.stop_gradient(memory)
            targets = batch["query_ids"]
            logits = model.read_memory(params, memory, targets)[..., 3:5, :]
            read = optax.softmax_cross_entropy_with_integer_labels(logits, targets[..., 3:]).mean()
            return read + 0.5 * inner

        want = jax.jit(jax.value_and_grad(explicit))(params)
        got = jax.jit(jax.value_and_grad(loss_of(model, batch)))(params)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)
        rate = got[1]["log_write_learning_rate"]["tokens"]
        self.assertEqual(rate == 0, mode == "none")
        self.assertEqual(np.all(got[1]["initial_memory"] == 0), mode == "none")


class StepsTest(FloatSixtyFour):
    def write_gradient(self, options, weight=0.0, **steps):
        """Gradient of the memory's variance and, with `weight`, the WRITE loss after `steps`."""
        model, params, batch = self.case(**options)
        context = batch["context_ids"][:1]
        static = {name: n for name, n in steps.items() if not isinstance(n, jax.Array)}
        traced = {name: n for name, n in steps.items() if name not in static}

        def loss(params, traced):
            memory, info = model.write_memory(params, context, **static, **traced)
            return memory.var() + weight * model.outer_write_loss(info).sum(), info

        return jax.jit(jax.grad(loss, has_aux=True))(params, traced)

    @parameterized.named_parameters(  # one step of second order: in the next test
        ("reverse", dict(second_order_steps=1, meta_gradient="reverse")),
        ("all_of_second_order", dict(second_order_steps=3)),
    )
    @pytest.mark.slow_cases("reverse")
    def test_a_traced_number_of_steps_has_the_gradient_of_a_static_one(self, options):
        want, _ = self.write_gradient(options, num_steps=2)
        got, _ = self.write_gradient(options, num_steps=jnp.int32(2), max_steps=4)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)

    @parameterized.parameters(
        dict(gradient_mode="first"), dict(gradient_mode="none"), dict(second_order_steps=1)
    )
    def test_outer_write_loss_is_that_of_the_last_step_taken(self, **options):
        options |= {"inner_loss_weight": 0.5}
        want, info = self.write_gradient(options, weight=0.5, num_steps=2)
        got, traced = self.write_gradient(options, 0.5, num_steps=jnp.int32(2), max_steps=3)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)
        model, _, _ = self.case(**options)
        np.testing.assert_allclose(model.outer_write_loss(traced), info.losses[-1])

    def test_outer_write_loss_below_a_tolerance(self):
        options = dict(gradient_mode="first", inner_loss_weight=0.5, write_learning_rate=0.1)
        _, info = self.write_gradient(options, num_steps=3)
        tolerance = float(info.losses[1:].mean())
        want, _ = self.write_gradient(options, weight=0.5, num_steps=2)
        got, info = self.write_gradient(options, 0.5, num_steps=3, loss_tolerance=tolerance)
        np.testing.assert_array_equal(info.num_steps, 2)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)

    @parameterized.parameters(
        (1, None, {}, [(1, "second_kept")]),
        (2, None, {}, [(1, "second"), (1, "second_kept")]),
        (3, None, {}, [(3, "second")]),
        (5, 2, {}, [(3, "first"), (1, "second"), (1, "second_kept")]),
        (2, None, dict(traced=True), [(2, "second")]),
        (2, None, dict(stops=True), [(2, "second")]),
        (2, None, dict(keep_last=False), [(2, "second")]),
        (2, 0, {}, [(2, "first")]),
    )
    def test_orders_of_steps(self, num_steps, second_order_steps, options, want):
        got = orders_of_steps(num_steps, second_order_steps, **({"keep_last": True} | options))
        self.assertEqual(got, want)


class MemoryTest(parameterized.TestCase):
    def temporary_bytes(self, meta_gradient, steps):
        model = small_model(meta_gradient=meta_gradient, num_write_steps=steps)
        size = lambda params: model.write_memory(params, small_batch()["context_ids"])[0].sum()
        params = jax.eval_shape(model.init, jax.random.key(0))
        compiled = jax.jit(jax.grad(size)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def test_mixed_mode_does_not_grow_with_the_number_of_steps(self):
        few, many = (self.temporary_bytes("mixed", steps) for steps in (3, 12))
        one_memory = 3 * 3 * 8 * 4
        self.assertLess(many - few, 9 * 4 * one_memory)
        self.assertGreater(self.temporary_bytes("reverse", 12) - many, 9 * 30 * one_memory)


if __name__ == "__main__":
    absltest.main()
