"""GPT-2: decoding with a cache, positions, refusals; numbers of the original are in parity_test."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import GPT2Config, GradMem, GradMemConfig, generate
from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.pretrained import gpt2_from_hugging_face
from tests.small import numpy_params, random_ids, small_params

CONFIG = GPT2Config(vocab_size=11, width=8, num_layers=2, num_heads=2, max_positions=20)
LM = make_lm(CONFIG)
PARAMS = numpy_params(
    lambda: LM.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method="everything")
)
IDS = random_ids(0, 3, 7)


class GPT2Test(parameterized.TestCase):
    def test_cache(self):
        want = jax.jit(lambda ids: LM.apply(PARAMS, ids, method="everything"))(IDS)

        @jax.jit
        def in_pieces(ids):
            cache, rows = LM.empty_cache(3, 7), []
            for piece in (ids[:, :4], ids[:, 4:5], ids[:, 5:]):
                embeddings = LM.apply(PARAMS, piece, method="embed")
                hidden, cache = LM.apply(PARAMS, embeddings, cache=cache)
                rows.append(LM.apply(PARAMS, hidden, method="unembed"))
            return jnp.concatenate(rows, axis=1)

        np.testing.assert_allclose(in_pieces(IDS), want, atol=1e-5)

    def test_positions_matter(self):
        embeddings = LM.apply(PARAMS, IDS, method="embed")
        here = LM.apply(PARAMS, embeddings)[0]
        there = LM.apply(PARAMS, embeddings, positions=jnp.arange(7)[None] + 3)[0]
        self.assertGreater(np.abs(here - there).max(), 1e-2)

    def test_gradmem_on_gpt2(self):
        model = GradMem(GradMemConfig(lm=CONFIG, num_memory_tokens=2, num_write_steps=1))
        params = small_params(model)
        memory, _ = jax.jit(model.write_memory)(params, IDS)
        self.assertEqual(memory.shape, (3, 2, 8))
        self.assertEqual(generate(model, params, memory, IDS[:, :3], 2).shape, (3, 2))
        with self.assertRaisesRegex(ValueError, "model has 20 positions"):
            model.write_memory(params, random_ids(0, 1, 19))

    def test_refusals(self):
        with self.assertRaisesRegex(ValueError, "width=8 is not a multiple of num_heads=3"):
            GPT2Config(vocab_size=11, width=8, num_heads=3)
        with self.assertRaisesRegex(ValueError, "no tensor 'x.transformer.wte.weight'"):
            gpt2_from_hugging_face({}, CONFIG, prefix="x.")
        tensors = {"transformer.wte.weight": np.zeros((11, 9))}
        with self.assertRaisesRegex(ValueError, r"has shape \(11, 9\); the config needs \(11, 8\)"):
            gpt2_from_hugging_face(tensors, CONFIG)


if __name__ == "__main__":
    absltest.main()
