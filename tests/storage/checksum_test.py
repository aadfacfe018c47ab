"""The checksum of checkpoints: what it sees, and that devices do not change it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradmem_jax.storage.checksum import bit_sum, checksum


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class ChecksumTest(parameterized.TestCase):
    def test_what_it_sees_and_the_old_one_does_not(self):
        x = draw((6, 4))
        tree = {"a": x, "b": draw((6, 4), 1)}
        rows, columns = x[[1, 0, 2, 3, 4, 5]], x[:, ::-1]
        changed = {
            "rows": tree | {"a": rows},
            "columns": tree | {"a": columns},
            "arrays": {"a": tree["b"], "b": tree["a"]},
            "part of two arrays": {
                "a": np.r_[tree["b"][:1], x[1:]],
                "b": np.r_[x[:1], tree["b"][1:]],
            },
            "shape": tree | {"a": x.reshape(4, 6)},
            "name": {"a": x, "c": tree["b"]},
        }
        self.assertEqual(checksum(tree), checksum(jax.tree.map(jnp.asarray, tree)))
        for what, other in changed.items():
            self.assertEqual(bit_sum(other), bit_sum(tree), what)
            self.assertNotEqual(checksum(other), checksum(tree), what)

    def test_many_changes_of_places(self):
        x = draw((32, 4))
        whole, rng = checksum({"x": x}), np.random.default_rng(1)
        for _ in range(200):
            i, j = rng.choice(len(x), 2, replace=False)
            other = x.copy()
            other[[i, j]] = x[[j, i]]
            self.assertNotEqual(checksum({"x": other}), whole)

    @parameterized.parameters("float32", "bfloat16", "float16", "int8", "int32", "uint8", "bool")
    def test_every_bit_counts(self, dtype):
        x = np.asarray(jnp.asarray(np.arange(1, 9) % 5, dtype))
        whole = checksum({"x": x})
        bits = 1 if dtype == "bool" else 8 * x.dtype.itemsize
        for place in range(x.size):
            for bit in range(bits):
                raw = x.copy().view(np.uint8).reshape(x.size, -1)
                raw[place, bit // 8] ^= 1 << bit % 8
                self.assertNotEqual(checksum({"x": raw.reshape(-1).view(x.dtype)}), whole)

    def test_64_bits(self):
        with jax.enable_x64(True):
            x = jnp.arange(1, 9, dtype=jnp.float64)
            self.assertNotEqual(checksum({"x": x}), checksum({"x": x[::-1]}))
            self.assertNotEqual(checksum({"x": x}), checksum({"x": x.at[0].add(1e-15)}))

    @parameterized.parameters(AxisType.Auto, AxisType.Explicit)
    def test_it_is_the_same_however_arrays_are_split(self, kind):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
        tree = {"w": draw((8, 16)), "b": draw(8), "n": np.int32(3)}
        whole = checksum(tree)
        for axes in (("x", "y"), (None, ("x", "y")), ("y", None), (("y", "x"), None)):
            spec = NamedSharding(mesh, PartitionSpec(*axes))
            split = jax.device_put(tree["w"], spec)
            self.assertEqual(checksum(tree | {"w": split}), whole)
        everywhere = NamedSharding(mesh, PartitionSpec())
        self.assertEqual(checksum(jax.device_put(tree, everywhere)), whole)

    def test_it_is_that_of_the_names_and_not_of_the_containers(self):
        x, y = draw(3), draw(4, 1)
        self.assertEqual(checksum(Pair(x, y)), checksum({"b": y, "a": x}))
        self.assertEqual(checksum([x, y]), checksum({"0": x, "1": y}))

    def test_empty(self):
        self.assertEqual(checksum({}), 0)
        self.assertEqual(checksum({"x": np.zeros((0, 3), np.float32)}), 0)


if __name__ == "__main__":
    absltest.main()
