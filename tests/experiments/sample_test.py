"""Texts drawn from a language model."""

import pathlib
import re

import jax
from absl.testing import absltest

from gradmem_jax.lm.pretrained.load import Pretrained, save_pretrained
from gradmem_jax.tokenizers.text_tokenizer import END, word_tokenizer
from tests.programs import start
from tests.small import numpy_params, small_model


class SampleTest(absltest.TestCase):
    def test_program(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        tokenizer = word_tokenizer(["é ü ö ß"])
        model = small_model(lm={"vocab_size": tokenizer.vocab_size, "max_positions": 64})
        lm = numpy_params(lambda: model.init(jax.random.key(0)))["lm"]
        save_pretrained(folder / "model", Pretrained(model.config.lm, lm, tokenizer))
        out = folder / "drawn.txt"
        words = (f"--model={folder / 'model'}", f"--out={out}", f"--start={END}")
        sizes = ("--num_texts=3", "--max_tokens=8", "--batch_size=3")
        done = start("sample", *words, *sizes, devices=1)
        self.assertEqual(done.returncode, 0, done.stderr)
        text = out.read_text(encoding="utf-8")
        self.assertGreater(len(text.encode()), len(text))
        (said,) = re.findall(r"wrote 3 texts, (\d+) characters", done.stdout)
        self.assertEqual(int(said), len(text))
        refused = start("sample", *words, "--max_tokens=63", devices=1)
        self.assertEqual(refused.returncode, 1)
        self.assertRegex(refused.stderr, "--max_tokens=63 .* at most 62")
        sizes = ("--num_texts=1", "--max_tokens=62", "--batch_size=1")
        self.assertEqual(start("sample", *words, *sizes, devices=1).returncode, 0)


if __name__ == "__main__":
    absltest.main()
