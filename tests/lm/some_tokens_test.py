"""An MLP over some tokens after the others: the same parameters, values and derivatives."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.lm import language_model
from gradmem_jax.lm.gpt2 import GPT2, GPT2Config
from gradmem_jax.lm.gpt_neox import GPTNeoX, GPTNeoXConfig
from gradmem_jax.lm.llama import Llama, LlamaConfig

SIZES = {"vocab_size": 11, "width": 16, "num_layers": 1, "num_heads": 2, "max_positions": 64}


class SomeTokensTest(parameterized.TestCase):
    @parameterized.parameters(
        (GPT2, GPT2Config, False), (GPTNeoX, GPTNeoXConfig, True), (Llama, LlamaConfig, True)
    )
    def test_as_all_at_once(self, kind, config, scan_layers):
        self.enter_context(jax.enable_x64(True))
        types = {"dtype": "float64", "param_dtype": "float64", "mlp_width": 64}
        lm = kind(config(**SIZES, **types, scan_layers=scan_layers))
        ids = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 37)))
        params = lm.init(jax.random.key(0), ids, method="everything")

        def total(params, ids):
            return jnp.square(lm.apply(params, ids, method="everything")).sum()

        def curvature(params, ids):
            direction = jax.tree.map(jnp.cos, params)
            gradient = functools.partial(jax.grad(total), ids=ids)
            return total(params, ids), jax.jvp(gradient, (params,), (direction,))

        whole = jax.jit(curvature)(params, ids)
        with mock.patch.multiple(language_model, _LARGEST_HIDDEN=0, _CHUNK_BYTES=0):
            again = lm.init(jax.random.key(0), ids, method="everything")
            program = jax.jit(lambda *args: curvature(*args)).lower(params, ids)
            parts = program.compile()(params, ids)
        chex.assert_trees_all_equal(again, params)
        chex.assert_trees_all_close(parts, whole, rtol=1e-9)
        self.assertIn("2x16x64", program.as_text())
        self.assertNotIn("2x37x64", program.as_text())


if __name__ == "__main__":
    absltest.main()
