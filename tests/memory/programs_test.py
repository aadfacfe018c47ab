"""What is compiled serves all equal models; what holds arrays of a transformation is not kept."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from gradmem_jax import GradMem, generate, reconstruct, write_context
from gradmem_jax.memory import programs
from tests.small import compiles, random_ids, small_batch, small_model, small_params, small_writer

MODEL = small_model()
PARAMS = small_params(MODEL)
CONTEXT = random_ids(0, 3, 9)
QUERY = random_ids(1, 3, 4)


def calls(model):
    """Every call that compiles for a model, by name."""
    memory = jnp.ones((3, 3, 8))
    return {
        "write_memory": lambda: model.write_memory(PARAMS, CONTEXT),
        "jit of write_memory": lambda: jax.jit(model.write_memory)(PARAMS, CONTEXT),
        "write_context": lambda: write_context(model, PARAMS, CONTEXT.reshape(3, 3, 3)),
        "read_memory": lambda: model.read_memory(PARAMS, memory, QUERY),
        "jit of read_memory": lambda: jax.jit(model.read_memory)(PARAMS, memory, QUERY),
        "several queries": lambda: model.read_memory(PARAMS, memory, QUERY[:, None]),
        "generate": lambda: generate(model, PARAMS, memory, QUERY, 2),
        "reconstruct": lambda: reconstruct(model, PARAMS, memory, CONTEXT),
        "jit of init": lambda: jax.jit(model.init)(jax.random.key(0)),
    }


class ProgramsTest(parameterized.TestCase):
    @parameterized.parameters(*calls(MODEL))
    def test_equal_models_share_what_is_compiled(self, name):
        jax.block_until_ready(calls(small_model())[name]())
        with compiles() as compiled:
            jax.block_until_ready(calls(small_model())[name]())
        self.assertEmpty(compiled)

    def test_compiles_are_counted(self):
        with compiles() as compiled:
            small_model(memory_init_std=0.25).write_memory(PARAMS, CONTEXT)
        self.assertNotEmpty(compiled)

    @parameterized.parameters(
        dict(num_write_steps=1),
        dict(write_learning_rate=0.5),
        dict(clip_value=0.1, clip_norm=0.1),
        dict(gradient_mode="first"),
        dict(second_order_steps=1),
        dict(meta_gradient="reverse"),
        dict(inner_loss_weight=0.1),
        dict(num_write_parts=1),
        dict(write_optimizer=optax.sgd(0.1)),
    )
    def test_an_option_of_write_compiles_no_read(self, **options):
        other = small_model(**options)
        for name in ("read_memory", "several queries", "generate"):
            calls(MODEL)[name]()
            with compiles() as compiled:
                calls(other)[name]()
            self.assertEmpty(compiled, name)

    @parameterized.parameters("rmt", "armt", "mamba", "full_context", "kv_prefix", "warm_start")
    def test_other_writers(self, name):
        params = small_params(small_writer(name))
        for expected in (True, False):
            model = small_writer(name)
            with compiles() as compiled:
                memory, _ = model.write_memory(params, CONTEXT)
                jax.block_until_ready(model.read_memory(params, memory, QUERY))
            self.assertEqual(bool(compiled), expected)

    def test_an_optimizer_is_compiled_once_for_each_object(self):
        optimizer = optax.sgd(0.1)
        small_model(optimizer).write_memory(PARAMS, CONTEXT)
        model = small_model(optimizer)
        model.write_memory(PARAMS, CONTEXT)
        with compiles() as compiled:
            jax.block_until_ready(model.write_memory(PARAMS, CONTEXT))
        self.assertEmpty(compiled)

    def test_rates_compile_nothing_new(self):
        MODEL.write_memory(PARAMS, CONTEXT, write_learning_rate=0.5)
        with compiles() as compiled:
            for rate in (0.1, 0.2, np.float32(0.3)):
                jax.block_until_ready(MODEL.write_memory(PARAMS, CONTEXT, write_learning_rate=rate))
        self.assertEmpty(compiled)

    def test_a_rate_inside_of_a_transformation_is_not_kept(self):
        @jax.jit
        def write(rate):
            model = GradMem(MODEL.config, optax.sgd(rate))
            memory, _ = model.write_memory(PARAMS, CONTEXT)
            return model.read_memory(PARAMS, memory, QUERY)

        with jax.checking_leaks():
            got = write(0.5)
        model = dataclasses.replace(
            MODEL, config=dataclasses.replace(MODEL.config, write_learning_rate=0.5)
        )
        want = model.read_memory(PARAMS, model.write_memory(PARAMS, CONTEXT)[0], QUERY)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    def test_a_number_of_models_is_kept(self):
        references = []
        for seed in range(programs.MAX_MODELS + 1):
            model = small_model(pad_id=seed % 11, memory_init_std=1.0 + seed)
            references.append(weakref.ref(model))
            programs.kept(model, "seed", lambda seed=seed: seed)
        del model
        gc.collect()
        alive = [reference() is not None for reference in references]
        self.assertEqual(alive, [False] + [True] * programs.MAX_MODELS)

    def test_two_steps_without_a_gradient_are_one_loop(self):
        two, three = (
            jax.jit(small_model(num_write_steps=k).write_memory).lower(PARAMS, CONTEXT).as_text()
            for k in (2, 3)
        )
        self.assertEqual(two.count("stablehlo.while"), three.count("stablehlo.while"))

    def test_given_language_model_parameters_outlive_a_donation(self):
        given = jax.tree.map(jnp.asarray, PARAMS["lm"])
        params = MODEL.init(jax.random.key(0), given)
        jax.jit(lambda x: jax.tree.map(jnp.sin, x), donate_argnums=0)(params)
        for x in jax.tree.leaves(given):
            self.assertFalse(x.is_deleted())

    def test_a_batch_has_what_one_compiled_call_has(self):
        batch = small_batch()
        want, _ = jax.jit(lambda p, ids: MODEL.write_memory(p, ids))(PARAMS, batch["context_ids"])
        got, _ = MODEL.write_memory(PARAMS, batch["context_ids"])
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
