"""Round trips and refusals of the character tokenizer."""

import numpy as np
from absl.testing import absltest

from gradmem_jax.tokenizers.characters import CharTokenizer, kv_alphabet, kv_tokenizer


class TokenizerTest(absltest.TestCase):
    def test_round_trip(self):
        tokenizer = kv_tokenizer(62)
        text = "!a1:zZ!?|"
        ids = tokenizer.encode(text)
        self.assertEqual(ids.dtype, np.int32)
        self.assertEqual(tokenizer.decode(ids), text)
        self.assertEqual(tokenizer.vocab_size, 62 + 4 + 4)
        self.assertLess(ids.max(), tokenizer.vocab_size)

    def test_specials(self):
        tokenizer = CharTokenizer("ab")
        self.assertEqual(tokenizer.encode("bxa").tolist(), [5, 3, 4])
        self.assertEqual(tokenizer.decode([0, 4, 3]), "a")
        self.assertEqual(tokenizer.decode([0, 4, 3], keep_specials=True), "[PAD]a[UNK]")

    def test_larger_alphabets_keep_the_ids_of_smaller_ones(self):
        self.assertLen(set(kv_alphabet(512)), 512)
        text = kv_alphabet(62) + "!?:|"
        np.testing.assert_array_equal(kv_tokenizer(62).encode(text), kv_tokenizer(512).encode(text))

    def test_refusals(self):
        with self.assertRaisesRegex(ValueError, "symbols='aa' must be different"):
            CharTokenizer("aa")
        with self.assertRaisesRegex(ValueError, "vocabulary"):
            CharTokenizer("ab").decode([6])
        with self.assertRaisesRegex(ValueError, "alphabet_size=0"):
            kv_alphabet(0)
        with self.assertRaisesRegex(ValueError, "alphabet_size=9999"):
            kv_alphabet(9999)


if __name__ == "__main__":
    absltest.main()
