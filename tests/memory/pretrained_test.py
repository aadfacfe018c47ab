"""Memory models that start from a pretrained language model."""

import pathlib

import jax
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import (
    ARMTConfig,
    AssociativeConfig,
    GradMem,
    GradMemConfig,
    LayerMemory,
    generate,
    load_config,
    load_pretrained,
)
from gradmem_jax.lm.families import make_lm
from gradmem_jax.methods import METHODS
from tests.small import random_ids, small_model, small_params, small_writer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


class PretrainedTest(parameterized.TestCase):
    @parameterized.parameters(*METHODS)
    def test_init_takes_the_language_model(self, name):
        model = small_writer(name)
        lm_params = small_params(model, seed=1)["lm"]
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        params = jax.jit(model.init)(jax.random.key(0), lm_params)
        self.assertEqual(spec(params), spec(shapes))
        jax.tree.map(np.testing.assert_array_equal, params["lm"], lm_params)
        if "write_head" in params:
            np.testing.assert_array_equal(params["write_head"], lm_params["head"])

    @parameterized.parameters("lm_llama3", "lm_gpt2", "lm_gpt_neox")
    def test_gradmem_from_disk(self, name):
        pretrained = load_pretrained(GOLDEN / name, scan_layers=True)
        model = GradMem(GradMemConfig(lm=pretrained.config, num_memory_tokens=2))
        params = model.init(jax.random.key(0), pretrained.params)
        head = make_lm(pretrained.config).apply({"params": params["lm"]}, method="head_kernel")
        np.testing.assert_array_equal(params["write_head"], head)
        memory, info = jax.jit(model.write_memory)(params, random_ids(0, 2, 9))
        self.assertTrue((info.losses[-1] < info.losses[0]).all())
        self.assertEqual(generate(model, params, memory, random_ids(1, 2, 3), 2).shape, (2, 2))

    def test_armt_from_a_plain_transformer(self):
        pretrained = load_pretrained(GOLDEN / "lm_llama")
        lm = AssociativeConfig(**vars(pretrained.config), memory_width=4)
        model = LayerMemory(ARMTConfig(lm=lm, num_memory_tokens=2))
        params = model.init(jax.random.key(0), pretrained.params)
        self.assertEqual(spec(params), spec(jax.eval_shape(model.init, jax.random.key(0))))
        for i in range(2):
            got, want = params["lm"][f"layers_{i}"]["block"], pretrained.params[f"layers_{i}"]
            jax.tree.map(np.testing.assert_array_equal, got, want)
        again = model.init(jax.random.key(1), params["lm"])["lm"]
        jax.tree.map(np.testing.assert_array_equal, again, params["lm"])

    def test_parameters_are_stored_as_configured(self):
        model = small_model(lm=dict(param_dtype="bfloat16"))
        lm_params = small_params(small_model())["lm"]
        params = model.init(jax.random.key(0), lm_params)
        self.assertEqual({str(x.dtype) for x in jax.tree.leaves(params)}, {"bfloat16"})

    def test_parameters_of_another_model_are_refused(self):
        lm_params = small_params(small_model(lm=dict(width=12)))["lm"]
        lm_params["extra"] = lm_params.pop("final_norm")
        with self.assertRaises(ValueError) as caught:
            small_model().init(jax.random.key(0), lm_params)
        for part in (
            "there is no 'final_norm/scale'",
            "'extra/scale' is unexpected",
            "'embedding' has shape (11, 12) instead of (11, 8)",
        ):
            self.assertIn(part, str(caught.exception))

    def test_configuration_alone(self):
        changes = dict(max_positions=30, remat="full")
        config = load_config(GOLDEN / "lm_gpt_neox", **changes)
        self.assertEqual(config, load_pretrained(GOLDEN / "lm_gpt_neox", **changes).config)
        self.assertEqual(config.max_positions, 30)

    @parameterized.parameters("head", "layers_1", "embedding")
    def test_armt_refuses_a_part_of_a_transformer(self, missing):
        lm = AssociativeConfig(vocab_size=11, width=8, num_layers=2, num_heads=2)
        model = LayerMemory(ARMTConfig(lm=lm))
        drawn = small_params(model)["lm"]
        plain = {n: x["block"] if n.startswith("layers") else x for n, x in drawn.items()}
        jax.eval_shape(model.init, jax.random.key(0), plain)
        del plain[missing]
        with self.assertRaisesRegex(ValueError, f"there is no '{missing}"):
            model.init(jax.random.key(0), plain)


def spec(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


if __name__ == "__main__":
    absltest.main()
