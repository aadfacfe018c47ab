"""The language model: causality, cache, options that must not change numbers, positions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import LlamaConfig, RopeScaling
from gradmem_jax.lm.attention import attend, attend_all, merge_partial
from gradmem_jax.lm.llama import Llama
from gradmem_jax.lm.rotary import rotary_frequencies, rotate

BASE = dict(vocab_size=11, width=8, num_layers=2, num_heads=4, num_kv_heads=2, init="fan_in")
IDS = np.random.default_rng(0).integers(11, size=(2, 7))


def make(**changes):
    model = Llama(LlamaConfig(**(BASE | changes)))
    variables = jax.jit(lambda key: model.init(key, IDS, method="everything"))(jax.random.key(0))
    return model, variables


def logits_of(model, variables, ids=IDS):
    return jax.jit(lambda v, ids: model.apply(v, ids, method="everything"))(variables, ids)


def stack_layers(params):
    layers = [params[name] for name in sorted(params) if name.startswith("layers_")]
    others = {name: x for name, x in params.items() if not name.startswith("layers_")}
    return others | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


class LlamaTest(parameterized.TestCase):
    def test_later_tokens_do_not_matter(self):
        model, variables = make()
        changed = IDS.copy()
        changed[:, 4:] = (changed[:, 4:] + 1) % 11
        before, after = logits_of(model, variables), logits_of(model, variables, changed)
        np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
        self.assertGreater(np.abs(before[:, 4:] - after[:, 4:]).min(axis=-1).max(), 1e-3)

    @parameterized.parameters(False, True)
    def test_cache_gives_the_same_as_one_pass(self, scan_layers):
        model, variables = make(scan_layers=scan_layers)

        @jax.jit
        def in_pieces(variables):
            apply = lambda *args, **kwargs: model.apply(variables, *args, **kwargs)
            embeddings = apply(IDS, method="embed")
            cache = model.empty_cache(2, 9)
            pieces = []
            for start, end in ((0, 3), (3, 4), (4, 7)):
                hidden, cache = apply(embeddings[:, start:end], cache=cache)
                pieces.append(apply(hidden, method="unembed"))
            return jnp.concatenate(pieces, axis=1), cache.length

        logits, length = in_pieces(variables)
        np.testing.assert_allclose(logits, logits_of(model, variables), atol=1e-5)
        np.testing.assert_array_equal(length, 7)

    @parameterized.parameters("none", "dots", "full")
    def test_scan_and_remat_change_nothing(self, remat):
        model, variables = make()
        other = Llama(LlamaConfig(**BASE, scan_layers=True, remat=remat))
        loss = lambda model: jax.jit(
            jax.value_and_grad(lambda p: model.apply({"params": p}, IDS, method="everything").var())
        )
        value, gradient = loss(model)(variables["params"])
        got, stacked = loss(other)(stack_layers(variables["params"]))
        np.testing.assert_allclose(got, value, rtol=1e-5)
        chex.assert_trees_all_close(stacked, stack_layers(gradient), rtol=1e-4, atol=1e-6)

    def test_parameters_and_their_scale(self):
        _, tied = make(tied_head=True, width=64, head_width=16, mlp_width=48)
        self.assertNotIn("head", tied["params"])
        self.assertEqual(tied["params"]["layers_0"]["gate"]["kernel"].shape, (64, 48))
        self.assertEqual(
            tied["params"]["layers_0"]["attention"]["key"]["kernel"].shape, (64, 2, 16)
        )
        _, fan_in = make(width=64)
        _, normal = make(width=64, init="normal", init_std=0.02)
        for variables, embedding, kernel in ((fan_in, 1.0, 64**-0.5), (normal, 0.02, 0.02)):
            params = variables["params"]
            np.testing.assert_allclose(params["embedding"].std(), embedding, rtol=0.1)
            np.testing.assert_allclose(params["layers_0"]["up"]["kernel"].std(), kernel, rtol=0.1)

    @parameterized.parameters(("bfloat16", "float32"), ("float64", "float64"))
    def test_dtypes(self, dtype, logits_dtype):
        with jax.enable_x64(dtype == "float64"):
            model, variables = make(dtype=dtype, param_dtype=dtype)
            logits = logits_of(model, variables)
            self.assertEqual(logits.dtype, logits_dtype)
            self.assertEqual(variables["params"]["embedding"].dtype, dtype)


class AttentionTest(parameterized.TestCase):
    @parameterized.parameters(1, 2, 4)
    def test_against_the_definition(self, kv_heads):
        rng = np.random.default_rng(0)
        query = rng.standard_normal((2, 5, 4, 6)).astype(np.float32)
        key, value = rng.standard_normal((2, 2, 5, kv_heads, 6)).astype(np.float32)
        mask = rng.random((2, 1, 5, 5)) < 0.7
        mask |= np.eye(5, dtype=bool)
        got = attend(query, key, value, mask).mean
        want = jax.nn.dot_product_attention(query, key, value, mask=mask)
        np.testing.assert_allclose(got, want, atol=1e-6)

    @parameterized.product(length=(1, 150, 1100), kv_heads=(1, 4))
    def test_causal_in_blocks(self, length, kv_heads):
        rng = np.random.default_rng(0)
        query, up, tangent = rng.standard_normal((3, 1, length, 4, 6)).astype(np.float32)
        key, value = rng.standard_normal((2, 1, length, kv_heads, 6)).astype(np.float32)
        mask = np.tril(np.ones((length, length), bool))[None, None]

        def second_order(mask):
            def gradient(query):
                y, pull = jax.vjp(lambda *a: attend(*a, mask).mean, query, key, value)
                return y, pull(up)

            return jax.jit(lambda q, t: jax.jvp(gradient, (q,), (t,)))(query, tangent)

        chex.assert_trees_all_close(second_order(None), second_order(mask), atol=3e-5)

    @parameterized.parameters(1, 2, 4)
    def test_keys_in_two_parts(self, kv_heads):
        rng = np.random.default_rng(0)
        query = rng.standard_normal((2, 5, 4, 6)).astype(np.float32)
        key, value = 3 * rng.standard_normal((2, 2, 8, kv_heads, 6)).astype(np.float32)
        after = np.tril(np.ones((5, 5), bool))
        first = attend(query, key[:, 3:], value[:, 3:])
        got = merge_partial(first, attend_all(query, key[:, :3], value[:, :3]))
        mask = np.concatenate([np.ones((5, 3), bool), after], axis=1)[None, None]
        want = jax.nn.dot_product_attention(query, key, value, mask=mask)
        np.testing.assert_allclose(got, want, atol=3e-6)

    def test_only_distances_matter(self):
        rng = np.random.default_rng(0)
        query, key = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
        frequencies = rotary_frequencies(8, 100.0)
        score = lambda i, j: float(
            (
                rotate(query, jnp.array([i]), frequencies)
                * rotate(key, jnp.array([j]), frequencies)
            ).sum()
        )
        self.assertAlmostEqual(score(3, 1), score(10, 8), places=5)
        self.assertNotAlmostEqual(score(3, 1), score(3, 2), places=3)

    def test_scaled_frequencies(self):
        plain = rotary_frequencies(16, 1e4)
        linear = rotary_frequencies(16, 1e4, RopeScaling(kind="linear", factor=4.0))
        np.testing.assert_allclose(linear, plain / 4)
        llama3 = rotary_frequencies(16, 1e4, RopeScaling(factor=8.0, original_positions=1000))
        wavelengths = 2 * np.pi / plain
        np.testing.assert_allclose(llama3[wavelengths < 250], plain[wavelengths < 250])
        np.testing.assert_allclose(llama3[wavelengths > 1000], plain[wavelengths > 1000] / 8)
        between = (wavelengths > 250) & (wavelengths < 1000)
        self.assertTrue(between.any())
        self.assertTrue(((llama3 < plain) & (llama3 > plain / 8))[between].all())


if __name__ == "__main__":
    absltest.main()
