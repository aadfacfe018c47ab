"""A pretrained language model, opened as it is."""

import numpy as np
from absl.testing import absltest, parameterized

from experiments.answers.open_model import open_pretrained, token_embeddings
from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.pretrained.load import load_pretrained
from tests.golden_cases import GOLDEN


class OpenPretrainedTest(absltest.TestCase):
    def test_memory_tokens_that_no_model_has_room_for(self):
        with self.assertRaisesRegex(ValueError, "num_memory_tokens=.* must be an integer"):
            open_pretrained(GOLDEN / "lm_llama", num_memory_tokens=2**70)


class TokenEmbeddingsTest(parameterized.TestCase):
    @parameterized.parameters("lm_gemma2", "lm_gpt2")
    def test_they_are_as_tokens_enter_the_model(self, name):
        pretrained = load_pretrained(GOLDEN / name)
        ids = np.arange(pretrained.config.vocab_size)[None]
        params = {"params": pretrained.params}
        entered = make_lm(pretrained.config).apply(params, ids, method="embed")
        found = token_embeddings(pretrained.config, pretrained.params)
        np.testing.assert_allclose(found, entered[0], rtol=1e-6)


if __name__ == "__main__":
    absltest.main()
