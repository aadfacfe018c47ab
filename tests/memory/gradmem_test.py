"""Properties of WRITE and READ, their options, errors and transformations."""

import functools
import re

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import gradmem_jax
from gradmem_jax import GradMem, GradMemConfig, LlamaConfig, ProjectedMemory
from gradmem_jax.losses import token_losses
from gradmem_jax.memory.inner_loop import clip_gradient
from tests.small import random_ids, small_model, small_params, small_parts, small_writer

MODEL = small_model(write_learning_rate=1.0)
PARAMS = small_params(MODEL)
CONTEXT = random_ids(0, 8, 9)
QUERY = random_ids(1, 8, 4)

write = jax.jit(MODEL.write_memory, static_argnames="max_steps")
write_static = jax.jit(MODEL.write_memory, static_argnames="num_steps")
read = jax.jit(MODEL.read_memory)


def close(got, want, rtol=1e-5, atol=1e-5):
    chex.assert_trees_all_close(got, want, rtol=rtol, atol=atol)


@functools.cache
def written():
    return jax.device_get(write(PARAMS, CONTEXT))


class WriteTest(parameterized.TestCase):
    def test_shapes_and_meaning_of_info(self):
        memory, info = written()
        chex.assert_shape(memory, (8, 3, 8))
        chex.assert_shape([info.losses, info.gradient_norms], (2, 8))
        np.testing.assert_array_equal(info.num_steps, 2)
        losses = MODEL.write_token_losses(PARAMS, MODEL.initial_memory(PARAMS, 8), CONTEXT)
        close(info.losses[0], losses.mean(axis=1))
        self.assertTrue((info.losses[1] < info.losses[0]).all())

    def test_one_step_is_gradient_descent(self):
        start = MODEL.initial_memory(PARAMS, 8)
        total = lambda m: MODEL.write_token_losses(PARAMS, m, CONTEXT).mean(axis=1).sum()
        gradient = jax.jit(jax.grad(total))(start)
        memory, info = write_static(PARAMS, CONTEXT, num_steps=1)
        close(memory, start - 1.0 * gradient)
        close(info.gradient_norms[0], jnp.linalg.norm(gradient.reshape(8, -1), axis=1))

    def test_sample_is_independent_of_its_batch(self):
        memory, info = write(PARAMS, CONTEXT[[3, 1, 1, 3, 5, 0, 7, 7]])
        want, want_info = written()
        for new, old in ((0, 3), (2, 1), (4, 5), (7, 7)):
            close(memory[new], want[old])
            close(info.losses[:, new], want_info.losses[:, old])
        alone, _ = write(PARAMS, CONTEXT[3:4])
        close(alone[0], want[3])

    @parameterized.parameters(1, 7)
    def test_padding_changes_nothing(self, extra):
        padded = np.pad(CONTEXT, ((0, 0), (0, extra)))
        close(write(PARAMS, padded), written())

    def test_context_of_padding_only_is_left_alone(self):
        context = CONTEXT.copy()
        context[2] = 0
        memory, info = write(PARAMS, context)
        close(memory[2], PARAMS["initial_memory"])
        self.assertEqual(float(info.losses[:, 2].sum()), 0)
        close(memory[3], written()[0][3])

    def test_no_steps_return_the_initial_memory(self):
        memory, info = write_static(PARAMS, CONTEXT, num_steps=0)
        close(memory, np.broadcast_to(PARAMS["initial_memory"], memory.shape), 0, 0)
        chex.assert_shape([info.losses, info.gradient_norms], (0, 8))
        np.testing.assert_array_equal(info.num_steps, 0)

    def test_writing_on(self):
        memory, _ = write_static(PARAMS, CONTEXT, num_steps=1)
        memory, _ = write_static(PARAMS, CONTEXT, memory=memory, num_steps=1)
        close(memory, written()[0])

    def test_more_steps_than_in_training(self):
        losses = write_static(PARAMS, CONTEXT, num_steps=6)[1].losses
        close(losses[:2], written()[1].losses)
        self.assertTrue((losses[-1] < losses[1]).all())

    def test_traced_number_of_steps(self):
        for steps in (0, 2, 5):
            want, want_info = write_static(PARAMS, CONTEXT, num_steps=steps)
            got, info = write(PARAMS, CONTEXT, num_steps=jnp.int32(steps), max_steps=6)
            close(got, want)
            close(info.losses[:steps], want_info.losses)
            np.testing.assert_array_equal(info.losses[steps:], 0)
            np.testing.assert_array_equal(info.num_steps, steps)

    def test_a_sample_stops_at_its_tolerance(self):
        all_losses = write_static(PARAMS, CONTEXT, num_steps=6)[1].losses
        tolerance = float(np.median(np.asarray(all_losses)[2]))
        memory, info = jax.jit(
            lambda p, c, t: MODEL.write_memory(p, c, num_steps=6, loss_tolerance=t)
        )(PARAMS, CONTEXT, tolerance)
        above = np.asarray(all_losses) > tolerance
        want = np.where(above.all(axis=0), 6, above.argmin(axis=0))
        np.testing.assert_array_equal(info.num_steps, want)
        self.assertGreater(len(set(want.tolist())), 1)
        for i, steps in enumerate(want):
            alone, _ = write_static(PARAMS, CONTEXT, num_steps=int(steps))
            close(memory[i], alone[i])

    def test_nothing_compiles_twice(self):
        chex.clear_trace_counter()
        fn = jax.jit(chex.assert_max_traces(MODEL.write_memory, n=1), static_argnames="max_steps")
        for steps in range(4):
            fn(PARAMS, CONTEXT, num_steps=jnp.int32(steps), max_steps=3)


class OptionsTest(parameterized.TestCase):
    def write(self, model, params=None):
        params = small_params(model) if params is None else params
        return params, *jax.jit(model.write_memory)(params, CONTEXT)

    def gradient(self, model, params):
        """Gradient of the first step."""
        start = model.initial_memory(params, 8)
        total = lambda m: model.write_token_losses(params, m, CONTEXT).mean(axis=1).sum()
        return start, jax.jit(jax.grad(total))(start)

    @parameterized.parameters("shared", "token", "dimension")
    def test_learned_rate(self, kind):
        model = small_model(learned_write_learning_rate=kind, num_write_steps=1)
        params, memory, _ = self.write(model)
        start, gradient = self.gradient(model, params)
        rate = np.exp(params["log_write_learning_rate"]["tokens"])
        self.assertEqual(rate.shape, {"shared": (), "token": (3, 1), "dimension": (8,)}[kind])
        close(memory, start - rate * gradient)

    def test_initial_values_of_options(self):
        model = small_model(
            learned_write_learning_rate="token",
            memory_projection="per_sample",
            num_control_tokens=2,
        )
        params = model.init(jax.random.key(0))
        for rate in jax.tree.leaves(params["log_write_learning_rate"]):
            close(jnp.exp(rate), np.full(rate.shape, 2.0))
        chex.assert_trees_all_equal(params["projection"]["kernel"], jnp.eye(8))
        chex.assert_trees_all_equal(params["projection"]["bias"], jnp.zeros(8))
        chex.assert_trees_all_equal(params["write_head"], params["lm"]["head"])
        for tokens in params["control"].values():
            chex.assert_shape(tokens, (2, 8))

    def test_per_sample_projection(self):
        model = small_model(memory_projection="per_sample", num_write_steps=1)
        params, memory, _ = self.write(model)
        start, gradient = self.gradient(model, params)
        self.assertIsInstance(memory, ProjectedMemory)
        close(memory, jax.tree.map(lambda x, g: x - 2.0 * g, start, gradient))
        self.assertGreater(np.abs(memory.kernel[0] - memory.kernel[1]).max(), 1e-3)
        logits = jax.jit(model.read_memory)(params, memory, QUERY)
        chex.assert_shape(logits, (8, 5, 11))

    def test_clipping(self):
        bound = small_model(clip_value=0.01, clip_norm=0.03, num_write_steps=1)
        params, memory, info = self.write(bound)
        start, gradient = self.gradient(bound, params)
        clipped = np.clip(gradient, -0.01, 0.01)
        norms = np.linalg.norm(clipped.reshape(8, -1), axis=1)[:, None, None]
        self.assertGreater(norms.min(), 0.03)
        close(memory, start - 2.0 * clipped * 0.03 / norms, atol=1e-4)
        close(info.gradient_norms[0], np.linalg.norm(gradient.reshape(8, -1), axis=1))

    def test_clipping_leaves_what_is_within_the_bounds(self):
        gradient = np.array([[0.3, -0.4], [3.0, -4.0]], np.float32)
        want = np.array([[0.3, -0.4], [0.6, -0.8]])
        close(clip_gradient(gradient, clip_norm=1.0), want)
        close(clip_gradient(gradient, clip_value=0.35), np.clip(gradient, -0.35, 0.35))

    def test_optax_transformation_is_run_per_sample(self):
        optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0, momentum=0.9))
        model = small_model(optimizer, num_write_steps=2)
        params, memory, _ = self.write(model)
        tokens, state = params["initial_memory"], optimizer.init(params["initial_memory"])
        context = CONTEXT[5:6]

        @jax.jit
        def step(tokens, state):
            loss = lambda m: model.write_token_losses(params, m[None], context).mean()
            updates, state = optimizer.update(jax.grad(loss)(tokens), state, tokens)
            return tokens + updates, state

        for _ in range(2):
            tokens, state = step(tokens, state)
        close(memory[5], tokens)

    def test_bfloat16(self):
        model = small_model(lm=dict(dtype="bfloat16"), write_learning_rate=1.0)
        params, memory, info = self.write(model, PARAMS)
        self.assertEqual((memory.dtype, info.losses.dtype), (jnp.float32, jnp.float32))
        close(memory, written()[0], atol=0.1)
        logits = jax.jit(model.read_memory)(params, memory, QUERY)
        self.assertEqual(logits.dtype, jnp.float32)
        self.assertTrue((logits != logits.astype(jnp.bfloat16)).any())

    @parameterized.parameters(True, False)
    def test_bfloat16_write_loss_is_that_of_logits_not_rounded(self, write_head):
        model = small_model(lm=dict(dtype="bfloat16"), write_head=write_head)
        params = small_params(model)
        head = params["write_head"] if write_head else params["lm"]["head"]
        hidden = jnp.asarray(np.random.default_rng(0).normal(size=(8, 9, 8)), jnp.bfloat16)
        exact = np.float64(hidden) @ np.float64(head.astype(jnp.bfloat16))
        losses = token_losses(model.write_logits(params, hidden), CONTEXT)
        close(losses, token_losses(exact, CONTEXT), rtol=1e-6, atol=1e-6)


class ReadTest(parameterized.TestCase):
    def test_reads_nothing_but_memory_and_query(self):
        memory, _ = written()
        logits = read(PARAMS, memory, QUERY)
        chex.assert_shape(logits, (8, 5, 11))
        changed = QUERY.copy()
        changed[:, -1] = changed[:, -1] % 10 + 1
        others = read(PARAMS, memory, changed)
        close(logits[:, :4], others[:, :4])
        self.assertGreater(np.abs(logits[:, 4] - others[:, 4]).max(), 1e-2)

    def test_many_queries_against_one_memory(self):
        memory, _ = written()
        queries = random_ids(2, 8, 3, 4)
        logits = read(PARAMS, memory, queries)
        chex.assert_shape(logits, (8, 3, 5, 11))
        for i in range(3):
            close(logits[:, i], read(PARAMS, memory, queries[:, i]))

    def test_control_tokens_differ_between_write_and_read(self):
        model = small_model(num_control_tokens=1)
        params = small_params(model)
        memory, _ = jax.jit(model.write_memory)(params, CONTEXT)
        logits = jax.jit(model.read_memory)(params, memory, QUERY)
        chex.assert_shape(logits, (8, 5, 11))
        for name, touches_read in (("write_start", False), ("read_end", True)):
            changed = params | {"control": params["control"] | {name: np.ones((1, 8), np.float32)}}
            others = jax.jit(model.read_memory)(changed, memory, QUERY)
            difference = float(np.abs(logits - others).max())
            self.assertEqual(difference > 1e-4, touches_read)


class TransformationsTest(parameterized.TestCase):
    def test_vmap(self):
        one = lambda ids: MODEL.write_memory(PARAMS, ids[None])[0][0]
        close(jax.jit(jax.vmap(one))(CONTEXT), written()[0])

    def test_pmap(self):
        self.assertLen(jax.devices(), 8)
        memory, info = jax.pmap(MODEL.write_memory, in_axes=(None, 0))(PARAMS, CONTEXT[:, None])
        close(memory[:, 0], written()[0])
        close(info.losses[:, :, 0].T, written()[1].losses)
        logits = jax.pmap(MODEL.read_memory, in_axes=(None, 0, 0))(PARAMS, memory, QUERY[:, None])
        close(logits[:, 0], read(PARAMS, written()[0], QUERY))

    def test_sharded_jit(self):
        mesh = Mesh(np.array(jax.devices()), ("data",))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        params = jax.device_put(PARAMS, everywhere)
        memory, _ = write(params, jax.device_put(CONTEXT, rows))
        self.assertEqual(memory.sharding.spec, PartitionSpec("data"))
        close(memory, written()[0])
        logits = read(params, memory, jax.device_put(QUERY, rows))
        close(logits, read(PARAMS, written()[0], QUERY))

    @parameterized.parameters("jit", "shard_map", "pmap")
    def test_parts_of_a_batch_are_as_large_on_each_device(self, transformation):
        num_devices, rows = jax.device_count(), PartitionSpec("data")
        contexts = random_ids(2, 4 * num_devices, 9)
        write = lambda ids: MODEL.write_memory(PARAMS, ids)[0]
        mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(AxisType.Auto,))
        transformed = {
            "jit": jax.jit(write),
            "shard_map": jax.jit(
                jax.shard_map(write, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
            ),
            "pmap": lambda ids: jax.pmap(write)(ids.reshape(num_devices, 4, 9)),
        }[transformation]
        with small_parts(18) as counted:
            memory = transformed(jax.device_put(contexts, NamedSharding(mesh, rows)))
        self.assertEqual({call.args for call in counted.call_args_list}, {(-1, 4, 9)})
        close(memory.reshape(-1, 3, 8), jax.jit(write)(contexts))

    def test_what_is_exported_for_another_platform_is_made_for_it(self):
        model = small_model(lm=dict(max_positions=512))
        write = jax.jit(lambda params, ids: model.write_memory(params, ids)[0])
        contexts = jax.ShapeDtypeStruct((6, 250), jnp.int32)
        for platform, rows in (("cpu", 2), ("tpu", 6), ("cuda", 6)):
            exported = jax.export.export(write, platforms=[platform])(PARAMS, contexts)
            sizes = set(re.findall(r"tensor<(\d+)x252x8xf32>", exported.mlir_module()))
            self.assertEqual(sizes, {str(rows)}, platform)

    def test_parts_of_a_write(self):
        contexts = random_ids(2, 6, 9)
        whole = small_model(num_write_parts=1)
        in_two = small_model(num_write_parts=2)
        want, got = (jax.jit(model.write_memory)(PARAMS, contexts) for model in (whole, in_two))
        close(got, want)
        self.assertIn("3x8x", jax.jit(in_two.write_memory).lower(PARAMS, contexts).as_text())
        with self.assertRaisesRegex(
            ValueError, "batch size 8 is not a multiple of num_write_parts=3"
        ):
            small_model(num_write_parts=3).write_memory(PARAMS, CONTEXT)
        with self.assertRaisesRegex(ValueError, "num_write_parts=0"):
            small_model(num_write_parts=0)

    def test_forward_mode(self):
        direction = jax.tree.map(jnp.cos, PARAMS)
        memory, _ = written()

        def size(params):
            return read(params, memory, QUERY).var()

        _, product = jax.jvp(size, (PARAMS,), (direction,))
        want = jax.tree.map(jnp.vdot, direction, jax.grad(size)(PARAMS))
        close(product, sum(jax.tree.leaves(want)), rtol=1e-3)

        reverse = small_model(meta_gradient="reverse")

        def written_size(params):
            return reverse.write_memory(params, CONTEXT)[0].var()

        _, product = jax.jit(lambda p, d: jax.jvp(written_size, (p,), (d,)))(PARAMS, direction)
        want = jax.tree.map(jnp.vdot, direction, jax.jit(jax.grad(written_size))(PARAMS))
        close(product, sum(jax.tree.leaves(want)), rtol=1e-3)

    def test_grad_in_every_argument(self):
        def loss(params, start):
            memory, _ = MODEL.write_memory(params, CONTEXT, memory=start)
            return MODEL.read_memory(params, memory, QUERY).var()

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, MODEL.initial_memory(PARAMS, 8))
        sizes = jax.tree.map(lambda g: float(np.abs(g).max()), gradients)
        self.assertEqual(sizes[0].pop("initial_memory"), 0)
        self.assertTrue(all(size > 0 for size in jax.tree.leaves(sizes)), sizes)


class ErrorsTest(parameterized.TestCase):
    @parameterized.parameters(
        (CONTEXT[0], r"\[B, S\]"),
        (CONTEXT[:, :0], "at least one"),
        (CONTEXT.astype(float), "integers"),
        (CONTEXT + 5, r"ids from .* \[0, 11\)"),
        (CONTEXT - 9, "ids from -"),
        (np.ones((1, 38), int), "Shorten it to 37"),
    )
    def test_context(self, context_ids, message):
        with self.assertRaisesRegex(ValueError, message):
            MODEL.write_memory(PARAMS, context_ids)

    @parameterized.parameters(-1, 1.5, True)
    def test_number_of_steps(self, steps):
        with self.assertRaisesRegex(ValueError, "num_steps"):
            MODEL.write_memory(PARAMS, CONTEXT, num_steps=steps)

    def test_traced_steps_need_a_bound(self):
        with self.assertRaisesRegex(ValueError, "max_steps"):
            jax.jit(MODEL.write_memory)(PARAMS, CONTEXT, num_steps=2)
        with self.assertRaisesRegex(ValueError, "greater than max_steps=2"):
            MODEL.write_memory(PARAMS, CONTEXT, num_steps=3, max_steps=2)

    @parameterized.parameters(
        (np.zeros((8, 2, 8), np.float32), r"\(8, 2, 8\)"),
        (np.zeros((7, 3, 8), np.float32), r"need \(8, 3, 8\)"),
        (np.zeros((8, 3, 8), np.int32), "int32 where this model's has float32"),
        (np.full((8, 3, 8), np.nan, np.float32), "diverged"),
        ((np.zeros((8, 3, 8), np.float32),), "another configuration"),
    )
    def test_memory(self, memory, message):
        with self.assertRaisesRegex(ValueError, message):
            MODEL.read_memory(PARAMS, memory, QUERY)
        with self.assertRaisesRegex(ValueError, message):
            MODEL.write_memory(PARAMS, CONTEXT, memory=memory)

    def test_query(self):
        with self.assertRaisesRegex(ValueError, "query_ids"):
            MODEL.read_memory(PARAMS, written()[0], QUERY[0])

    @parameterized.parameters(
        dict(num_memory_tokens=0),
        dict(num_write_steps=-1),
        dict(write_learning_rate=0.0),
        dict(write_learning_rate=float("nan")),
        dict(learned_write_learning_rate="yes"),
        dict(memory_projection="both"),
        dict(clip_norm=-1.0),
        dict(gradient_mode="third"),
        dict(gradient_mode="first", second_order_steps=1),
        dict(meta_gradient="forward"),
        dict(inner_loss_weight=-1.0),
        dict(pad_id=11),
    )
    def test_config(self, **changes):
        with self.assertRaisesRegex(ValueError, list(changes)[-1]):
            GradMemConfig(lm=MODEL.config.lm, **changes)

    def test_memory_without_room_for_tokens(self):
        with self.assertRaisesRegex(ValueError, "take 40 positions, the model has 40"):
            GradMemConfig(lm=MODEL.config.lm, num_memory_tokens=40)

    @parameterized.parameters(
        dict(vocab_size=0),
        dict(width=10),
        dict(num_kv_heads=3),
        dict(head_width=3),
        dict(rope_base=0.0),
        dict(init="zeros"),
        dict(dtype="int8"),
        dict(remat="some"),
    )
    def test_lm_config(self, **changes):
        with self.assertRaisesRegex(ValueError, list(changes)[0]):
            LlamaConfig(**(dict(vocab_size=11) | changes))

    def test_two_write_learning_rates(self):
        with self.assertRaisesRegex(ValueError, "learned_write_learning_rate"):
            small_model(optax.sgd(1.0), learned_write_learning_rate="shared")

    @parameterized.parameters("kv_prefix", "warm_start")
    def test_configuration_of_another_class(self, name):
        right = small_writer(name)
        with self.assertRaisesRegex(ValueError, f"use the class {type(right).__name__}"):
            GradMem(right.config)

    def test_memory_that_fills_all_positions(self):
        model = small_writer("rmt", lm=dict(max_positions=5))
        with self.assertRaisesRegex(ValueError, "5 positions. Take a smaller memory or raise"):
            model.write_memory(small_params(model), CONTEXT)

    def test_a_frozen_dict(self):
        for params in (flax.core.freeze(PARAMS), PARAMS | {"lm": flax.core.freeze(PARAMS["lm"])}):
            with self.assertRaisesRegex(ValueError, r"give a dict: flax.core.unfreeze"):
                MODEL.write_memory(params, CONTEXT)

    def test_integers_beside_the_parameters(self):
        total = lambda p: MODEL.write_memory(p | {"step": jnp.arange(3)}, CONTEXT)[0].sum()
        chex.assert_trees_all_equal_shapes(jax.eval_shape(jax.grad(total), PARAMS), PARAMS)


class PublicNamesTest(parameterized.TestCase):
    def test_all_names_are_documented(self):
        self.assertIn("GradMem", gradmem_jax.__all__)
        for name in gradmem_jax.__all__:
            self.assertTrue(getattr(gradmem_jax, name).__doc__, name)

    def test_model_can_be_a_static_argument(self):
        self.assertEqual(hash(small_model()), hash(small_model()))
        self.assertEqual(small_model(), GradMem(small_model().config))


if __name__ == "__main__":
    absltest.main()
