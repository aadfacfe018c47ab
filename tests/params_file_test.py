"""Parameters on disk: they come back as they were, and nothing else is taken for them."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import save_file

from experiments.methods import METHODS
from gradmem_jax import load_params, save_memory, save_params
from tests.bad_inputs import refused
from tests.small import small_model, small_params, small_writer


class ParamsFileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.create_tempdir().full_path) / "params.safetensors"

    @parameterized.named_parameters((name, name) for name in METHODS)
    def test_come_back_bit_by_bit(self, name):
        model = small_writer(name)
        params = small_params(model)
        save_params(self.path, params)
        loaded = load_params(self.path)
        self.assertEqual(jax.tree.structure(loaded), jax.tree.structure(params))
        chex.assert_trees_all_equal_dtypes(loaded, params)
        chex.assert_trees_all_equal(loaded, params)
        model.check_params(loaded)
        self.assertEqual([p.name for p in self.path.parent.iterdir()], [self.path.name])

    @parameterized.parameters(("float16", 2**-11), ("bfloat16", 2**-8))
    def test_half_the_size(self, dtype, error):
        params = small_params(small_model())
        save_params(self.path, params)
        whole = self.path.stat().st_size
        save_params(self.path, params, dtype)
        self.assertLess(self.path.stat().st_size, 0.8 * whole)
        loaded = load_params(self.path)
        chex.assert_trees_all_equal_dtypes(loaded, params)
        chex.assert_trees_all_close(loaded, params, rtol=error, atol=1e-6)
        save_params(self.path, loaded, dtype)
        chex.assert_trees_all_equal(load_params(self.path), loaded)

    def test_what_is_no_number_of_its_kind_is_left_alone(self):
        params = {"a": {"ids": jnp.arange(3), "half": jnp.ones(2, jnp.bfloat16)}, "b": jnp.ones(())}
        save_params(self.path, params, "float16")
        loaded = load_params(self.path)
        chex.assert_trees_all_equal_dtypes(loaded, params)
        chex.assert_trees_all_equal(loaded, params)

    def test_refuses_to_save(self):
        bad = {
            "nothing": {},
            "no dict": jnp.ones(3),
            "not finite": {"x": np.array([1.0, np.nan])},
            "too large": {"x": np.array([1e5])},
        }
        for params in bad.values():
            refused("params", lambda params=params: save_params(self.path, params, "float16"))
        refused("params", lambda: save_params(self.path, {"x": np.ones(1)}, "int8"))
        refused("params", lambda: save_params(3, {"x": np.ones(1)}))
        self.assertFalse(self.path.exists())
        save_params(self.path, bad["too large"], "bfloat16")
        with self.assertRaisesRegex(ValueError, "outside of jit"):
            jax.jit(lambda x: save_params(self.path, {"x": x}))(1.0)

    def test_refuses_to_load(self):
        self.assertIn("not a file", refused("params", lambda: load_params(self.path)))
        save_params(self.path, {"x": np.arange(100.0)})
        whole = self.path.read_bytes()
        self.path.write_bytes(whole[:-4])
        self.assertIn("cut short", refused("params", lambda: load_params(self.path)))
        self.path.write_bytes(whole[:-4] + b"1234")
        self.assertIn("checksum", refused("params", lambda: load_params(self.path)))
        save_file({"x": np.ones(2)}, self.path)
        self.assertIn("not one of", refused("params", lambda: load_params(self.path)))
        model = small_model()
        params = small_params(model)
        save_memory(self.path, model.initial_memory(params, 1), model, params)
        self.assertIn("not one of", refused("params", lambda: load_params(self.path)))


if __name__ == "__main__":
    absltest.main()
