"""Parameters on disk: they come back as they were, and nothing else is taken for them."""

import json
import pathlib
import threading
from concurrent import futures
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import save_file

from gradmem_jax import load_params, save_memory, save_params
from gradmem_jax.methods import METHODS
from gradmem_jax.storage import params_file
from gradmem_jax.storage.params_file import FORMAT, stored_shapes
from tests.bad_inputs import refused
from tests.small import small_model, small_params, small_writer


def in_folders(count):
    """Parameters of one array, in so many dicts beside the outermost."""
    params = {"x": np.ones(1, np.float32)}
    for _ in range(count):
        params = {"a": params}
    return params


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

    def test_threads_that_save_one_path_do_not_meet(self):
        both = threading.Barrier(2, timeout=60)
        replace = pathlib.Path.replace

        def replace_together(path, target):
            both.wait()
            return replace(path, target)

        save = lambda value: save_params(self.path, {"x": np.full(3, value, np.float32)})
        with (
            mock.patch.object(pathlib.Path, "replace", replace_together),
            futures.ThreadPoolExecutor(2) as pool,
        ):
            list(pool.map(save, (1, 2)))
        self.assertIn(load_params(self.path)["x"].tolist(), [[1.0] * 3, [2.0] * 3])
        self.assertEqual([p.name for p in self.path.parent.iterdir()], [self.path.name])

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

    def test_refuses_to_save_what_would_not_come_back(self):
        for params, message in (
            ({"a": {"b/c": np.ones(1)}}, r"params\['a'\] has the key 'b/c'"),
            ({"a": {3: np.ones(1)}}, "has the key 3"),
            ({"": np.ones(2), "memory": np.ones(3)}, "params has the key ''; .* not empty"),
            ({"a": {"": np.ones(1)}}, r"params\['a'\] has the key ''"),
            ({"__metadata__": np.ones(1)}, "has the key '__metadata__'"),
            ({"\ud800": np.ones(1)}, r"has the key '\\ud800'; names must be texts in UTF-8"),
            (in_folders(33), "in more than 32 dicts; name the arrays in fewer"),
            ({"a": [np.ones(1)]}, r"params\['a'\] is a list"),
            ({"a": np.ones(1), "b": None}, r"params\['b'\] is a NoneType"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                save_params(self.path, params)
        self.assertFalse(self.path.exists())
        save_params(self.path, in_folders(32))
        chex.assert_trees_all_equal(load_params(self.path), in_folders(32))

    def test_numbers_of_64_bits(self):
        save_params(self.path, {"x": np.ones(1)})
        with self.assertRaisesRegex(ValueError, r"'x'.* is float64.*jax_enable_x64., True"):
            load_params(self.path)
        with jax.enable_x64(True):
            self.assertEqual(load_params(self.path)["x"].dtype, np.float64)

    def test_damaged_metadata(self):
        whole = {"format": FORMAT, "dtypes": '{"x": "float32"}', "checksum": "0"}
        for name, value in (("dtypes", None), ("checksum", None), ("dtypes", "{"), ("dtypes", "3")):
            metadata = {k: v for k, v in (whole | {name: value}).items() if v is not None}
            save_file({"x": np.ones(2, np.float32)}, self.path, metadata)
            with self.assertRaisesRegex(ValueError, f"{self.path} is damaged"):
                load_params(self.path)

    @parameterized.parameters(
        ({"a": np.ones(1), "a/b": np.ones(1)}, "'a(/b)?'. is also the folder of others"),
        ({"/" * 100: np.ones(1)}, "in more than 32 folders"),
        ({"x": np.array([1, np.nan])}, "the parameters of .* are not finite, such as 'x'"),
        ({"a": {"x": np.array([np.inf])}}, "not finite, such as 'a/x'"),
    )
    def test_arrays_that_are_no_parameters(self, params, message):
        with mock.patch.object(params_file, "_check_names"), mock.patch.object(np, "isfinite"):
            save_params(self.path, jax.tree.map(np.float32, params))
        with self.assertRaisesRegex(ValueError, message):
            load_params(self.path)

    @parameterized.parameters(
        ("float32", "int32"),
        ("int32", "float32"),
        ("int32", "int64"),
        ("float32", "complex64"),
        ("float32", "O"),
        ("float32", "<f4"),
        ("float32", "f4,f4"),
        ("float32", "wide"),
        ("float32", ["float32"]),
        ("float32", None),
    )
    def test_dtypes_that_an_array_cannot_have(self, stored, dtype):
        arrays = {"x": np.ones(2, stored)}
        metadata = {"format": FORMAT, "dtypes": json.dumps({"x": dtype}), "checksum": ""}
        save_file(arrays, self.path, metadata)
        with self.assertRaisesRegex(ValueError, r"params\['x'\], stored as \w+, cannot be a "):
            load_params(self.path)

    def test_shapes_without_arrays(self):
        save_params(self.path, {"a": {"x": np.ones((2, 3))}, "b": np.ones(())}, "float16")
        self.assertEqual(stored_shapes(self.path), {"a/x": (2, 3), "b": ()})

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
