"""GPT-2 and GPT-NeoX: decoding with a cache, positions, refusals.

Numbers of the originals are in tests/memory/parity_test.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import (
    AssociativeConfig,
    GPT2Config,
    GPTNeoXConfig,
    GradMem,
    GradMemConfig,
    LlamaConfig,
    TTTLinearConfig,
    generate,
)
from gradmem_jax.lm.armt import AssociativeLlama
from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.gpt2 import GPT2
from gradmem_jax.lm.pretrained.load import from_hugging_face
from gradmem_jax.lm.transformer import TransformerConfig
from tests.small import numpy_params, random_ids, small_params

OPTIONS = dict(vocab_size=11, width=8, num_layers=2, num_heads=2, max_positions=20)
CONFIGS = {
    "gpt2": GPT2Config(**OPTIONS),
    "gpt_neox": GPTNeoXConfig(**OPTIONS, rotary_fraction=0.5),
    "llama": LlamaConfig(**OPTIONS | {"num_heads": 4}, num_kv_heads=2),
    "gpt_neox_in_sequence": GPTNeoXConfig(**OPTIONS, rotary_fraction=0.5, parallel_residual=False),
}
IDS = random_ids(0, 3, 7)


def language_model(name, **changes):
    lm = make_lm(dataclasses.replace(CONFIGS[name], **changes))
    init = lambda: lm.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method="everything")
    return lm, numpy_params(init)


class TransformerTest(parameterized.TestCase):
    @parameterized.parameters(*CONFIGS)
    def test_cache(self, name):
        lm, params = language_model(name)
        want = jax.jit(lambda ids: lm.apply(params, ids, method="everything"))(IDS)

        @jax.jit
        def in_pieces(ids):
            cache, rows = lm.empty_cache(3, 7), []
            for piece in (ids[:, :4], ids[:, 4:5], ids[:, 5:]):
                embeddings = lm.apply(params, piece, method="embed")
                hidden, cache = lm.apply(params, embeddings, cache=cache)
                rows.append(lm.apply(params, hidden, method="unembed"))
            return jnp.concatenate(rows, axis=1)

        np.testing.assert_allclose(in_pieces(IDS), want, atol=1e-5)

    @parameterized.product(name=tuple(CONFIGS), length=(1, 7, 150))
    def test_partial_attention_is_merged(self, name, length):
        lm, params = language_model(name, max_positions=160)
        embeddings = np.random.default_rng(0).standard_normal((2, 3 + length, 8)).astype(np.float32)

        @jax.jit
        def run(embeddings):
            attended = lm.apply(params, embeddings[:, 3:], 3, method="first_layer_attention")
            merged, _ = lm.apply(params, embeddings, partial_attention=attended)
            return merged, lm.apply(params, embeddings)[0]

        np.testing.assert_allclose(*run(embeddings), atol=2e-5)

    def test_without_partial_attention(self):
        lm, params = language_model("llama")
        self.assertIsNone(lm.apply(params, jnp.zeros((2, 0, 8)), 3, method="first_layer_attention"))
        lm, params = language_model("llama", scan_layers=True)
        self.assertIsNone(lm.apply(params, jnp.zeros((2, 4, 8)), 3, method="first_layer_attention"))

    @parameterized.parameters(("gpt2", True), ("gpt_neox", False))
    def test_what_moving_all_positions_changes(self, name, changes):
        lm, params = language_model(name)
        embeddings = lm.apply(params, IDS, method="embed")
        run = jax.jit(lambda positions: lm.apply(params, embeddings, positions=positions)[0])
        moved = np.abs(run(jnp.arange(7)[None]) - run(jnp.arange(7)[None] + 3)).max()
        self.assertEqual(moved > 1e-3, changes)
        stretched = np.abs(run(jnp.arange(7)[None]) - run(2 * jnp.arange(7)[None])).max()
        self.assertGreater(stretched, 1e-3)

    def test_sequence_and_parallel_differ(self):
        lm, params = language_model("gpt_neox")
        other = make_lm(CONFIGS["gpt_neox_in_sequence"])
        run = lambda lm: lm.apply(params, IDS, method="everything")
        self.assertGreater(np.abs(run(lm) - run(other)).max(), 1e-2)

    @parameterized.parameters("gpt2", "gpt_neox")
    def test_gradmem(self, name):
        config = CONFIGS[name]
        model = GradMem(GradMemConfig(lm=config, num_memory_tokens=2, num_write_steps=1))
        params = small_params(model)
        memory, _ = jax.jit(model.write_memory)(params, IDS)
        self.assertEqual(memory.shape, (3, 2, 8))
        self.assertEqual(generate(model, params, memory, IDS[:, :3], 2).shape, (3, 2))
        with self.assertRaisesRegex(ValueError, "model has 20 positions"):
            model.write_memory(params, random_ids(0, 1, 19))

    def test_config_refusals(self):
        with self.assertRaisesRegex(ValueError, "width=8 is not a multiple of num_heads=3"):
            GPT2Config(vocab_size=11, width=8, num_heads=3)
        with self.assertRaisesRegex(ValueError, "rotary_fraction=0.25 rotates 1 of the 4"):
            GPTNeoXConfig(vocab_size=11, width=8, num_heads=2)
        with self.assertRaisesRegex(ValueError, "rotary_fraction=1.5"):
            GPTNeoXConfig(vocab_size=11, width=8, num_heads=2, rotary_fraction=1.5)

    @parameterized.parameters(
        ("gpt2", "transformer.wte.weight"),
        ("gpt_neox", "gpt_neox.embed_in.weight"),
    )
    def test_checkpoint_refusals(self, name, embedding):
        with self.assertRaisesRegex(ValueError, f"no tensor '{embedding}'"):
            from_hugging_face({}, CONFIGS[name], prefix="x.")
        tensors = {embedding: np.zeros((11, 9))}
        with self.assertRaisesRegex(ValueError, r"has shape \(11, 9\) instead of \(11, 8\)"):
            from_hugging_face(tensors, CONFIGS[name])
        with self.assertRaisesRegex(ValueError, "a TTTLinearConfig cannot be read"):
            from_hugging_face({}, TTTLinearConfig(vocab_size=11))

    def test_a_configuration_without_a_family(self):
        class OwnConfig(TransformerConfig):
            pass

        message = "lm=OwnConfig has no .* LlamaConfig, .*own_models.md"
        with self.assertRaisesRegex(ValueError, message):
            make_lm(OwnConfig(vocab_size=11))

    def test_a_configuration_with_one_more_field(self):
        @dataclasses.dataclass(frozen=True)
        class OwnConfig(GPT2Config):
            note: str = ""

        @dataclasses.dataclass(frozen=True)
        class OwnAssociativeConfig(AssociativeConfig):
            note: str = ""

        self.assertIsInstance(make_lm(OwnConfig(vocab_size=11)), GPT2)
        self.assertIsInstance(make_lm(OwnAssociativeConfig(vocab_size=11)), AssociativeLlama)
        lm = make_lm(OwnAssociativeConfig(vocab_size=11))
        ids = jnp.zeros((1, 1), jnp.int32)
        jax.eval_shape(lambda: lm.init(jax.random.key(0), ids, method="everything"))


if __name__ == "__main__":
    absltest.main()
