"""In which precision products are taken: the language model's, in every pass."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from absl.testing import absltest, parameterized

from gradmem_jax.memory.generate import generate
from gradmem_jax.methods import METHODS
from tests.golden_errors import errors
from tests.rounded_products import rounding
from tests.small import VOCAB_SIZE, numpy_params, small_model, small_writer


def precisions(lowered):
    """How many products of a program have which precision."""
    found = {}
    for line in lowered.as_text().splitlines():
        if "stablehlo.dot_general" in line:
            match = re.search(r"precision = \[(\w+), (\w+)\]", line)
            pair = match.groups() if match else ("DEFAULT", "DEFAULT")
            found[pair] = found.get(pair, 0) + 1
    return found


def batch(length=5):
    ids = 1 + jnp.arange(2 * length).reshape(2, length) % (VOCAB_SIZE - 1)
    return ids, ids[:, :3]


def loss(model, params, context_ids, query_ids):
    memory, info = model.write_memory(params, context_ids)
    logits = model.read_memory(params, memory, query_ids)
    return jnp.square(logits).sum() + model.outer_write_loss(info).sum()


class PrecisionTest(parameterized.TestCase):
    def check_all_are(self, lowered, precision):
        found = precisions(lowered)
        wanted = (precision.upper(),) * 2
        self.assertEqual(set(found), {wanted}, found)
        self.assertGreater(found[wanted], 5)

    @parameterized.named_parameters((f"_{name}", name) for name in METHODS)
    @pytest.mark.slow_cases(*sorted(METHODS.keys() - {"gradmem", "mamba2", "rmt"}))
    def test_every_product_of_a_training_step(self, name):
        model = small_writer(name, lm={"matmul_precision": "highest"})
        params = numpy_params(lambda: model.init(jax.random.key(0)))
        gradient = jax.jit(jax.grad(functools.partial(loss, model)))
        self.check_all_are(gradient.lower(params, *batch()), "highest")

    def test_in_blocks_of_attention(self):
        lm = {"matmul_precision": "highest", "attention": "auto", "max_positions": 1100}
        model = small_model(lm=lm, memory_projection="proj")
        params = numpy_params(lambda: model.init(jax.random.key(0)))
        gradient = jax.jit(jax.grad(functools.partial(loss, model)))
        self.check_all_are(gradient.lower(params, *batch(1060)), "highest")

    @parameterized.parameters("highest", "default")
    def test_decoding(self, precision):
        model = small_model(lm={"matmul_precision": precision})
        params = numpy_params(lambda: model.init(jax.random.key(0)))
        ids, queries = batch()
        memory, _ = model.write_memory(params, ids)

        @jax.jit
        def run(params, memory, queries):
            return generate(model, params, memory, queries, 4)

        self.check_all_are(run.lower(params, memory, queries), precision)

    def test_what_is_reported(self):
        model = small_model(lm={"matmul_precision": "highest"}, memory_projection="proj")
        params = numpy_params(lambda: model.init(jax.random.key(0)))
        ids, _ = batch()
        memory = jax.eval_shape(lambda: model.initial_memory(params, 2))

        def total(memory, params):
            return model.write_token_losses(params, memory, ids).sum()

        self.check_all_are(jax.jit(jax.grad(total)).lower(memory, params), "highest")

    def test_programs_have_names(self):
        model = small_model()
        params = numpy_params(lambda: model.init(jax.random.key(0)))
        text = jax.make_jaxpr(model.write_memory)(params, batch()[0])
        self.assertIn("name=_write", str(text))

    def test_what_is_set_around_a_call_does_not_matter(self):
        model = small_model(lm={"matmul_precision": "high"})
        params = numpy_params(lambda: model.init(jax.random.key(0)))
        gradient = jax.jit(jax.grad(functools.partial(loss, model)))
        with jax.default_matmul_precision("bfloat16"):
            self.check_all_are(gradient.lower(params, *batch()), "high")

    def test_what_a_tpu_makes_of_it(self):
        with rounding("tpu"):
            rounded = errors("gradmem_llama_k1", "default")
            exact = errors("gradmem_llama_k1", "highest")
        self.assertGreater(rounded["gradient"], 1e-3)
        self.assertLess(max(exact.values()), 1e-5)

    def test_a_wrong_name_is_refused(self):
        with self.assertRaisesRegex(ValueError, "matmul_precision"):
            small_model(lm={"matmul_precision": "best"})


if __name__ == "__main__":
    absltest.main()
