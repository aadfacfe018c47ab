"""The outer loop: metrics, micro-batches, optimizer, steps that are not finite, learning."""

import functools
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from gradmem_jax import GPT2Config, GradMem, GradMemConfig
from gradmem_jax.methods import METHODS
from gradmem_jax.parallel import micro_batches
from gradmem_jax.parallel.micro_batches import count_micro_batches
from gradmem_jax.parallel.sharding import MeshConfig, make_mesh, place, shardings
from gradmem_jax.training import evaluation
from gradmem_jax.training.evaluation import evaluate_batch
from gradmem_jax.training.losses import loss_and_metrics
from gradmem_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    linear_layers,
    make_optimizer,
    matrices,
)
from gradmem_jax.training.step import init_state, loss_gradient, make_train_step
from gradmem_jax.trees import path_name
from tests.small import random_ids, small_batch, small_model, small_params, small_writer

MODEL = small_model(inner_loss_weight=0.5)
PARAMS = small_params(MODEL)


def decayed_names(model):
    """Paths of the parameters that weight decay reaches, without the numbers of layers."""
    tree = matrices(jax.eval_shape(model.init, jax.random.key(0)))
    leaves = jax.tree.leaves_with_path(tree)
    return {re.sub(r"layers_\d+", "layers", path_name(path)) for path, is_one in leaves if is_one}


def evaluate_long_contexts(params, mesh=None):
    """Metrics and totals of contexts so long that they go in parts."""
    batch = small_batch(16)
    batch["context_ids"] = random_ids(1, 16, 250)
    batch["context_kinds"] = batch["context_ids"] % 3
    batch["valid"] = np.arange(16) != 4
    model = small_model(lm={"max_positions": 512}, num_write_steps=1)
    return evaluate_batch(model, params, batch, jnp.int32(1), max_steps=1, num_kinds=3, mesh=mesh)


@functools.cache
def evaluate_whole_and_in_parts():
    evaluation._jit_evaluation.cache_clear()
    with mock.patch.object(micro_batches, "count_micro_batches", return_value=1) as count:
        whole = evaluate_long_contexts(PARAMS)
    assert count.called
    evaluation._jit_evaluation.cache_clear()
    return whole, evaluate_long_contexts(PARAMS)


class LossTest(parameterized.TestCase):
    def test_metrics_by_hand(self):
        batch = small_batch(4)
        batch["value_mask"] = (np.arange(5) == 3) & (batch["labels"] >= 0)
        batch["valid"] = np.array([True, True, False, True])
        loss, metrics = jax.jit(lambda p: loss_and_metrics(MODEL, p, batch))(PARAMS)
        memory, info = jax.jit(MODEL.write_memory)(PARAMS, batch["context_ids"])
        logits = np.asarray(jax.jit(MODEL.read_memory)(PARAMS, memory, batch["query_ids"]))
        rows = [0, 1, 3]
        targets = batch["query_ids"][rows][:, :, 3:]
        predicted = logits[rows][:, :, 3:5]
        read_loss = optax.softmax_cross_entropy_with_integer_labels(predicted, targets).mean()
        right = predicted[:, :, 0].argmax(-1) == targets[:, :, 0]
        write_loss = info.losses[-1][np.array(rows)].mean()
        want = {
            "read_loss": read_loss,
            "exact_match": right.mean(),
            "token_accuracy": right.mean(),
            "write_loss": write_loss,
            "write_gradient_norm": info.gradient_norms[:, np.array(rows)].mean(),
            "loss": read_loss + 0.5 * write_loss,
        }
        for name, value in want.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(loss, want["loss"], rtol=1e-5)

    def test_exact_match_needs_every_value_symbol(self):
        model = small_model(num_write_steps=0)
        batch = small_batch(3, queries=4)
        memory = model.initial_memory(PARAMS, 3)
        logits = jax.jit(model.read_memory)(PARAMS, memory, batch["query_ids"])
        greedy = np.asarray(logits[:, :, 3:5].argmax(-1))
        batch["labels"][:, :, 3:] = greedy
        batch["labels"][0, 0, 4] = (greedy[0, 0, 1] + 1) % 11
        _, metrics = jax.jit(lambda p: loss_and_metrics(model, p, batch))(PARAMS)
        np.testing.assert_allclose(metrics["exact_match"], 11 / 12, rtol=1e-6)
        np.testing.assert_allclose(metrics["token_accuracy"], 23 / 24, rtol=1e-6)

    def test_micro_batches_change_nothing(self):
        batch = small_batch(6)
        batch["labels"][0] = -100
        batch["valid"] = np.arange(6) != 4
        model = small_model(inner_loss_weight=0.5, num_write_steps=1)
        whole = jax.jit(lambda p: loss_gradient(model, p, batch))(PARAMS)
        parts = jax.jit(lambda p: loss_gradient(model, p, batch, 3))(PARAMS)
        chex.assert_trees_all_close(whole, parts, rtol=1e-4, atol=1e-6)

    def test_micro_batches_must_divide_the_batch(self):
        with self.assertRaisesRegex(ValueError, "num_micro_batches=4"):
            loss_gradient(MODEL, PARAMS, small_batch(6), 4)

    def test_evaluation_of_a_traced_number_of_steps(self):
        batch = small_batch(4)
        batch["context_kinds"] = batch["context_ids"] % 3
        write = jax.jit(MODEL.write_memory, static_argnames="num_steps")
        token_losses = jax.jit(MODEL.write_token_losses)
        for steps in (0, 2, 4):
            metrics, totals = evaluate_batch(
                MODEL, PARAMS, batch, jnp.int32(steps), max_steps=4, num_kinds=3
            )
            memory, _ = write(PARAMS, batch["context_ids"], num_steps=steps)
            losses = token_losses(PARAMS, memory, batch["context_ids"])
            tokens = batch["context_ids"] > 0
            np.testing.assert_allclose(metrics["write_loss"], losses[tokens].mean(), rtol=1e-4)
            for kind in range(3):
                where = tokens & (batch["context_kinds"] == kind)
                np.testing.assert_allclose(
                    metrics["write_loss_by_kind"][kind], losses[where].mean(), rtol=1e-4
                )
                self.assertEqual(totals["kinds"][kind], where.sum())

    @parameterized.parameters({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2})
    def test_evaluation_in_parts_and_on_devices_is_the_same(self, **layout):
        whole, in_parts = evaluate_whole_and_in_parts()
        mesh = make_mesh(MeshConfig(**layout))
        on_devices = evaluate_long_contexts(place(PARAMS, shardings(PARAMS, mesh)), mesh)
        for got in (in_parts, on_devices):
            chex.assert_trees_all_close(got, whole, rtol=1e-4)
        self.assertEqual(whole[1]["tokens"], 15 * 250)

    @parameterized.parameters(0, -2, 1.5)
    def test_number_of_micro_batches(self, bad):
        with self.assertRaisesRegex(ValueError, f"num_micro_batches={bad} must be an integer >= 1"):
            loss_gradient(MODEL, PARAMS, small_batch(6), bad)

    @parameterized.parameters(
        ("cpu", 64, 234, 32),
        ("cpu", 32, 61, 4),
        ("cpu", 6, 5000, 6),
        ("cpu", 6, 20, 1),
        ("cpu", 61, 234, 61),
        ("cpu", 0, 0, 1),
        ("gpu", 64, 234, 1),
        ("tpu", 64, 234, 1),
    )
    def test_chosen_number_of_micro_batches(self, platform, batch_size, num_tokens, want):
        self.assertEqual(count_micro_batches(-1, batch_size, num_tokens, platform), want)

    def test_long_contexts_go_in_parts_by_default(self):
        batch = small_batch(6)
        batch["context_ids"] = random_ids(1, 6, 250)
        model = small_model(lm={"max_positions": 512}, inner_loss_weight=0.5, num_write_steps=1)
        programs = [jax.jit(lambda p, n=n: loss_gradient(model, p, batch, *n)) for n in ((1,), ())]
        lowered = [program.lower(PARAMS) for program in programs]
        contexts = [re.findall(r"tensor<(\d+)x250xi32>", p.as_text()) for p in lowered]
        whole, parts = (p.compile()(PARAMS) for p in lowered)
        self.assertEqual([min(map(int, sizes)) for sizes in contexts], [6, 2])
        chex.assert_trees_all_close(whole, parts, rtol=1e-4, atol=1e-6)

    def test_write_takes_a_micro_batch_whole(self):
        batch = small_batch(6)
        batch["context_ids"] = random_ids(1, 6, 250)
        model = small_model(lm={"max_positions": 512}, num_write_steps=1)
        sizes = []
        embed = lambda model, params, ids, embed=GradMem.embed: (
            sizes.append(len(ids)) or embed(model, params, ids)
        )
        with mock.patch.object(GradMem, "embed", embed):
            for num_micro_batches in (1, 2):
                step = lambda p, n=num_micro_batches: loss_gradient(model, p, batch, n)
                jax.eval_shape(step, PARAMS)
            in_step = set(sizes)
            sizes.clear()
            jax.eval_shape(model.write_memory, PARAMS, batch["context_ids"])
        self.assertEqual(in_step, {6, 3})
        self.assertEqual(set(sizes), {2, 6})  # on CPU, and on other platforms

    def test_write_gradient_norm_is_that_of_the_whole_memory(self):
        model = small_model(memory_projection="per_sample", num_write_steps=1)
        params, batch = small_params(model), small_batch()
        run = jax.jit(
            lambda p: (
                model.write_memory(p, batch["context_ids"])[1],
                loss_and_metrics(model, p, batch)[1],
            )
        )
        info, metrics = run(params)
        squares = sum(np.square(norm) for norm in info.gradient_norms)
        np.testing.assert_allclose(
            metrics["write_gradient_norm"], np.sqrt(squares).mean(), rtol=1e-5
        )


class OptimizerTest(parameterized.TestCase):
    def test_schedules(self):
        constant = learning_rate_schedule(OptimizerConfig(learning_rate=0.1, warmup_steps=10))
        np.testing.assert_allclose([constant(i) for i in (0, 5, 10, 99)], [0, 0.05, 0.1, 0.1])
        cosine = learning_rate_schedule(
            OptimizerConfig(
                learning_rate=0.1,
                warmup_steps=10,
                schedule="cosine",
                num_steps=110,
                final_learning_rate=0.02,
            )
        )
        np.testing.assert_allclose(
            [cosine(i) for i in (0, 10, 60, 110, 200)], [0, 0.1, 0.06, 0.02, 0.02], atol=1e-7
        )

    def test_matrices_decay_and_vectors_do_not(self):
        optimizer = make_optimizer(
            OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=None)
        )
        params = {"matrix": jnp.ones((2, 2)), "vector": jnp.ones(2)}
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        np.testing.assert_allclose(updates["matrix"], -0.05 * np.ones((2, 2)), rtol=1e-6)
        np.testing.assert_array_equal(updates["vector"], 0)

    @parameterized.parameters(None, 0.5, 20.0)
    def test_adamw_by_hand(self, clip_norm):
        optimizer = make_optimizer(
            OptimizerConfig(
                learning_rate=0.1,
                warmup_steps=0,
                b1=0.6,
                b2=0.7,
                epsilon=0.3,
                weight_decay=0.0,
                clip_norm=clip_norm,
            )
        )
        params = {"x": jnp.zeros(2)}
        state, mean, square = optimizer.init(params), 0.0, 0.0
        for t, gradient in enumerate(([3.0, -4.0], [0.1, 0.2]), 1):
            updates, state = optimizer.update({"x": jnp.array(gradient)}, state, params)
            clipped = np.array(gradient) * min(1, (clip_norm or 99) / np.linalg.norm(gradient))
            mean, square = 0.6 * mean + 0.4 * clipped, 0.7 * square + 0.3 * clipped**2
            want = -0.1 * mean / (1 - 0.6**t) / (np.sqrt(square / (1 - 0.7**t)) + 0.3)
            np.testing.assert_allclose(updates["x"], want, rtol=1e-5)

    @parameterized.parameters(*METHODS)
    def test_the_same_parameters_decay_however_layers_are_stacked(self, name):
        decayed = []
        for scan_layers in (False, True):
            model = small_writer(name, lm=dict(num_layers=2, scan_layers=scan_layers))
            decayed.append(decayed_names(model))
        self.assertEqual(*decayed)
        self.assertIn("lm/embedding", decayed[0])
        for path in decayed[0]:
            self.assertNotRegex(path, "bias$|scale$|A_log$")

    def test_matrices_of_adapters_and_gpt2_decay(self):
        for scan_layers in (False, True):
            lm = dict(vocab_size=11, width=8, num_layers=2, num_heads=2, scan_layers=scan_layers)
            config = GradMemConfig(
                lm=GPT2Config(**lm),
                num_control_tokens=1,
                write_lora_rank=2,
                memory_projection="proj",
                learned_write_learning_rate="token",
            )
            self.assertEqual(
                {path.split("/")[-1] for path in decayed_names(GradMem(config))},
                {"embedding", "position_embedding", "kernel", "a", "b"}
                | {"initial_memory", "write_head"}
                | {f"{phase}_{side}" for phase in ("read", "write") for side in ("start", "end")},
            )

    def test_muon_updates_of_linear_layers_are_nearly_orthogonal(self):
        params = small_params(small_model(lm=dict(width=16, mlp_width=24)))
        rng = np.random.default_rng(0)
        gradient = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
        optimizer = make_optimizer(
            OptimizerConfig("muon", learning_rate=0.1, warmup_steps=0, clip_norm=None)
        )
        updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
        adam = optax.nadamw(0.1, b2=0.999, weight_decay=0.0)
        want, _ = adam.update(gradient, adam.init(params), params)
        for path in ("write_head", "initial_memory"):
            np.testing.assert_allclose(updates[path], want[path], rtol=1e-5)

        def check(update, gradient, shape):
            update, gradient = update.reshape(shape), gradient.reshape(shape)
            left, _, right = np.linalg.svd(gradient, full_matrices=False)
            want = -0.1 * 0.2 * np.sqrt(max(update.shape)) * left @ right
            cosine = (update * want).sum() / np.linalg.norm(update) / np.linalg.norm(want)
            self.assertGreater(cosine, 0.97)
            self.assertAlmostEqual(np.linalg.norm(update) / np.linalg.norm(want), 1, delta=0.25)

        layer, of_layer = (tree["lm"]["layers_0"] for tree in (updates, gradient))
        for name in ("query", "key", "value", "output"):
            part = lambda layer, name=name: layer["attention"][name]["kernel"]
            check(part(layer), part(of_layer), (-1, 16) if name == "output" else (16, -1))
        for name in ("gate", "up", "down"):
            matrix = layer[name]["kernel"]
            check(matrix, of_layer[name]["kernel"], matrix.shape)

    def test_muon_decays_linear_layers_only(self):
        optimizer = make_optimizer(
            OptimizerConfig("muon", learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
        )
        params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "head": jnp.ones((3, 2))}
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        np.testing.assert_allclose(updates["up"]["kernel"], -0.05 * np.ones((2, 3)), rtol=1e-6)
        chex.assert_trees_all_equal(
            (updates["up"]["bias"], updates["head"]), (zeros["up"]["bias"], zeros["head"])
        )

    @parameterized.parameters(*METHODS)
    def test_muon_knows_the_linear_layers_of_every_method(self, name):
        stacked, flat = (
            small_writer(name, lm=dict(num_layers=2, scan_layers=scan)) for scan in (True, False)
        )
        axes = [
            linear_layers(jax.eval_shape(lambda model=model: model.init(jax.random.key(0))))
            for model in (stacked, flat)
        ]
        for layer in ("layers_0", "layers_1"):
            self.assertEqual(axes[0]["lm"]["layers"], axes[1]["lm"][layer])
        params = jax.eval_shape(lambda: flat.init(jax.random.key(0)))
        for path, x in jax.tree.leaves_with_path(params):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found = functools.reduce(lambda tree, key: tree[key.key], path, axes[1])
            self.assertEqual(found is not None, name.endswith("/kernel"), name)
            if found is not None:
                used = {
                    i % x.ndim
                    for i in np.ravel([*np.atleast_1d(found[0]), *np.atleast_1d(found[1])])
                }
                self.assertEqual(used, set(range(x.ndim)), name)

    @parameterized.parameters(
        dict(name="sgd"),
        dict(learning_rate=0.0),
        dict(schedule="linear"),
        dict(b2=1.0),
        dict(epsilon=0.0),
        dict(clip_norm=0.0),
        dict(num_steps=0),
        dict(schedule="cosine", num_steps=100, warmup_steps=100),
    )
    def test_refusals(self, **fields):
        with self.assertRaisesRegex(ValueError, list(fields)[-1]):
            OptimizerConfig(**fields)

    def test_muon_takes_learned_write_rates_for_numbers(self):
        model = small_model(memory_projection="per_sample", learned_write_learning_rate="shared")
        axes = linear_layers(jax.eval_shape(lambda: model.init(jax.random.key(0))))
        self.assertEqual(set(axes["log_write_learning_rate"].values()), {None})
        self.assertIsNotNone(axes["projection"]["kernel"])


class StepTest(parameterized.TestCase):
    @parameterized.parameters("adamw", "muon")
    def test_learns_by_heart(self, name):
        model = small_model(
            learned_write_learning_rate="shared",
            num_write_steps=1,
            write_learning_rate=5.0,
            lm=dict(width=16),
        )
        optimizer = make_optimizer(
            OptimizerConfig(name, learning_rate=1e-2, warmup_steps=0, b2=0.99, num_steps=200)
        )
        state = init_state(jax.jit(model.init)(jax.random.key(0)), optimizer)
        batch = small_batch(4)
        batch["query_ids"][:, :, :3] = random_ids(9, 1, 1, 3)  # only memory tells samples apart
        batch["query_ids"][:, 1] = batch["query_ids"][:, 0]
        batch["labels"] = np.where(np.arange(5) < 3, -100, batch["query_ids"])
        self.assertLen({tuple(row) for row in batch["labels"][:, 0]}, 4)
        step = jax.jit(make_train_step(model, optimizer), donate_argnums=0)
        for _ in range(200):
            state, metrics = step(state, batch)
        self.assertEqual(int(state.step), 200)
        self.assertEqual(float(metrics["exact_match"]), 1.0)
        self.assertLess(float(metrics["loss"]), 0.1)

    def test_step_that_is_not_finite_changes_nothing(self):
        model = small_model(num_write_steps=1)
        optimizer = make_optimizer(OptimizerConfig())
        state = init_state(jax.jit(model.init)(jax.random.key(0)), optimizer)
        step = jax.jit(make_train_step(model, optimizer))
        bad = state._replace(
            params=state.params | {"initial_memory": jnp.full((3, 8), jnp.inf, jnp.float32)}
        )
        after, metrics = step(bad, small_batch())
        self.assertFalse(bool(metrics["finite"]))
        self.assertEqual(int(after.step), 1)
        chex.assert_trees_all_equal(after.params, bad.params)
        chex.assert_trees_all_equal(after.optimizer_state, bad.optimizer_state)
        after, metrics = step(state, small_batch())
        self.assertTrue(bool(metrics["finite"]))

    def test_step_of_a_finite_loss_without_a_gradient_changes_nothing(self):
        class Kink(GradMem):
            def read_memory(self, params, memory, query_ids):
                zero = jnp.sqrt(0 * params["initial_memory"].sum())  # its gradient is NaN
                return super().read_memory(params, memory, query_ids) + zero

        model, optimizer = Kink(small_model(num_write_steps=0).config), optax.sgd(0.1)
        state = init_state(PARAMS, optimizer)
        after, metrics = jax.jit(make_train_step(model, optimizer))(state, small_batch())
        self.assertTrue(np.isfinite(metrics["loss"]))
        self.assertFalse(bool(metrics["finite"]))
        chex.assert_trees_all_equal(after.params, state.params)

    def test_step_to_parameters_that_are_not_finite_changes_nothing(self):
        state = init_state(PARAMS, optax.scale(jnp.nan))
        after, metrics = jax.jit(make_train_step(MODEL, optax.scale(jnp.nan)))(state, small_batch())
        self.assertTrue(np.isfinite(metrics["gradient_norm"]))
        self.assertFalse(bool(metrics["finite"]))
        chex.assert_trees_all_equal(after.params, state.params)

    @parameterized.parameters("bfloat16", "float16")
    def test_the_optimizer_of_parameters_of_16_bits_has_32(self, dtype):
        # In 16 bits themselves epsilon or the decay would be lost, and this norm be infinite.
        model = small_model(num_write_steps=1, inner_loss_weight=3000, lm={"param_dtype": dtype})
        optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0))
        state, batch = init_state(small_params(model), optimizer), small_batch()
        step = jax.jit(make_train_step(model, optimizer))
        gradient_fn = jax.jit(functools.partial(loss_gradient, model))
        params = state.params
        wide = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
        optimizer_state = optimizer.init(wide(params))
        for _ in range(3):
            gradient = wide(gradient_fn(params, batch)[0])
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, wide(params))
            params = jax.tree.map(
                lambda x, y: (x + y).astype(jnp.dtype(dtype)), wide(params), updates
            )
            state, metrics = step(state, batch)
            self.assertTrue(bool(metrics["finite"]))
            norm = np.sqrt(sum(np.square(x, dtype=float).sum() for x in jax.tree.leaves(gradient)))
            self.assertAlmostEqual(float(metrics["gradient_norm"]) / norm, 1, delta=0.01)
            ours, want = (jax.tree.map(np.float32, x) for x in (state.params, params))
            chex.assert_trees_all_close(ours, want, atol=0.01)
        self.assertGreater(norm, 300)

    def test_micro_batches_that_write_splits(self):
        model = small_model(num_write_parts=2, lm={"max_positions": 512})
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, np.int32) for name, x in small_batch(6).items()
        }
        batch["context_ids"] = jax.ShapeDtypeStruct((6, 400), np.int32)
        gradient = functools.partial(
            jax.eval_shape, functools.partial(loss_gradient, model), PARAMS
        )
        gradient(batch)
        step = jax.jit(functools.partial(loss_gradient, model, num_micro_batches=6))
        message = "batch size 6 is not a multiple of num_micro_batches=6 times num_write_parts=2"
        with self.assertRaisesRegex(ValueError, message):
            step.lower(PARAMS, batch)
        self.assertEqual(count_micro_batches(-1, 6, 400, num_write_parts=2), 3)
        self.assertEqual(count_micro_batches(-1, 5, 400, num_write_parts=2), 1)  # WRITE refuses


if __name__ == "__main__":
    absltest.main()
