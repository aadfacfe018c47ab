"""Tokenizers of strangers: what they may make of a text, and for how long."""

import base64
import json
import pathlib
import time
from contextlib import nullcontext
from unittest import mock

import tokenizers
from absl.testing import absltest, parameterized
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gradmem_jax.tokenizers import bounds
from gradmem_jax.tokenizers.bounds import check_content, check_ids, check_pieces
from gradmem_jax.tokenizers.text_tokenizer import character_tokenizer, load_tokenizer

_WORDS = models.WordLevel({"[UNK]": 0, "[PAD]": 1, "[END]": 2, "a": 3}, unk_token="[UNK]")
_SLOW = "(?:(?:.|.){17}[0-9]|.)"  # a hundred thousand steps for each character


def backend(normalizer=None, pre_tokenizer=None, decoder=None):
    made = tokenizers.Tokenizer(_WORDS)
    made.normalizer, made.pre_tokenizer, made.decoder = normalizer, pre_tokenizer, decoder
    return made


def content(**parts):
    return json.loads(backend(**parts).to_str())


def precompiled(*texts):
    table = b"\0".join(text.encode() for text in texts) + b"\0"
    charsmap = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + table).decode()
    return {"type": "Precompiled", "precompiled_charsmap": charsmap}


def replace(old, new):
    return normalizers.Replace(old, new)


class BoundsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("gpt2", dict(pre_tokenizer=pre_tokenizers.ByteLevel())),
        (
            "llama",
            dict(normalizer=normalizers.Sequence([normalizers.Prepend("_"), replace(" ", "_")])),
        ),
        ("bert", dict(normalizer=normalizers.BertNormalizer())),
        (
            "xlm_r",
            dict(
                normalizer=normalizers.Sequence([normalizers.NFKC(), replace("  ", " ")]),
                pre_tokenizer=pre_tokenizers.Metaspace(),
            ),
        ),
        ("unicode", dict(normalizer=normalizers.Sequence([normalizers.NFKD()] * 9))),
    )
    def test_usual_ones(self, parts):
        self.assertFalse(check_content(content(**parts)).time)

    @parameterized.named_parameters(
        ("Replace", dict(normalizer=replace("ab", "x" * 300))),
        ("nothing", dict(normalizer=replace("", "x" * 100))),
        ("pattern", dict(normalizer=replace(tokenizers.Regex("."), "x" * 200))),
        ("Prepend", dict(normalizer=normalizers.Prepend("x" * 100))),
        ("doubling", dict(normalizer=normalizers.Sequence([replace("a", "aa")] * 7))),
        (
            "spaces",
            dict(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Metaspace()] * 4)),
        ),
        ("bytes", dict(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.ByteLevel()] * 2))),
        ("decoder", dict(decoder=decoders.Sequence([decoders.Replace("a", "aa")] * 7))),
    )
    def test_those_that_blow_up(self, parts):
        with self.assertRaisesRegex(ValueError, r"may make \d+ characters .* 100? are acc"):
            check_content(content(**parts))

    def test_precompiled(self):
        check_content(content() | {"normalizer": precompiled("x" * 18, "")})
        with self.assertRaisesRegex(ValueError, "characters or more of one"):
            check_content(content() | {"normalizer": precompiled("a", "x" * 101, "b")})

    @parameterized.parameters(
        ([0, 1, 2], None),
        ([0, 5], None),
        ([0, 1, 1], "two tokens with one id"),
        ([0, 2000], "2 tokens and the id 2000; ids below 1028 are accepted"),
        ([], None),
    )
    def test_ids(self, ids, message):
        expected = self.assertRaisesRegex(ValueError, message) if message else nullcontext()
        with expected:
            check_ids(ids)

    def test_pieces(self):
        check_pieces(f"piece {i}" for i in range(200_000))
        with self.assertRaisesRegex(ValueError, "too long, taken together"):
            check_pieces(["a" * 2**14])

    def test_known_patterns_are_not_watched(self):
        own = json.loads(character_tokenizer(["a"]).backend.to_str())
        self.assertEqual(check_content(own), (False, False))
        split = pre_tokenizers.Split(tokenizers.Regex(bounds.LLAMA3_PATTERN), "isolated")
        self.assertFalse(check_content(content(pre_tokenizer=split)).time)
        other = pre_tokenizers.Split(tokenizers.Regex("x+y"), "isolated")
        self.assertTrue(check_content(content(pre_tokenizer=other)).time)

    def load(self, **parts):
        path = pathlib.Path(self.create_tempdir().full_path) / "tokenizer.json"
        path.write_text(backend(**parts).to_str())
        return load_tokenizer(path)

    def test_a_pattern_that_takes_for_ever_is_given_up(self):
        split = pre_tokenizers.Split(tokenizers.Regex(_SLOW), "isolated")
        tokenizer = self.load(pre_tokenizer=split)
        self.assertEqual(tokenizer.encode("a").tolist(), [3])
        self.assertEqual(tokenizer.encode_with_offsets("aa")[1].tolist(), [[0, 1], [1, 2]])
        with mock.patch.object(bounds, "_SECONDS", 0.1):
            start = time.monotonic()
            with self.assertRaisesRegex(ValueError, "more than 0 seconds to cut a text of 99"):
                tokenizer.encode("a" * 99)
        self.assertLess(time.monotonic() - start, 5)

    def test_what_a_normalizer_makes_of_a_text(self):
        tokenizer = self.load(normalizer=normalizers.NFKD())
        self.assertEqual(tokenizer.watch, (False, True))
        tokenizer.encode("\ufdfa \ufb03")  # one becomes 18, the other three
        tokenizer = self.load(normalizer=replace("a", "a" * 50))
        tokenizer.encode("a cat sat on a mat")
        with self.assertRaisesRegex(ValueError, "makes 5000 characters of a text of 100; 1400 are"):
            tokenizer.encode("a" * 100)

    def test_a_decoder_with_a_pattern(self):
        slow = decoders.Replace(tokenizers.Regex(_SLOW), "x")
        tokenizer = self.load(decoder=decoders.Sequence([decoders.Fuse(), slow]))
        self.assertEqual(tokenizer.decode([3]), "x")
        with (
            mock.patch.object(bounds, "_SECONDS", 0.1),
            self.assertRaisesRegex(ValueError, "more than 0 seconds to join the pieces of 99"),
        ):
            tokenizer.decode([3] * 99)

    def test_failures_inside_are_refusals(self):
        """`tokenizers` gives up a pattern by a panic, which is no Exception."""
        slow = pre_tokenizers.Split(tokenizers.Regex(_SLOW.replace("17", "40")), "isolated")
        tokenizer = self.load(pre_tokenizer=slow)
        with self.assertRaisesRegex(ValueError, "the tokenizer cannot cut a text: .*retry-limit"):
            tokenizer.encode("a" * 99)
        unknown = tokenizers.Tokenizer(models.WordLevel({"[PAD]": 0, "[END]": 1}, unk_token="no"))
        path = pathlib.Path(self.create_tempdir().full_path) / "tokenizer.json"
        path.write_text(unknown.to_str())
        with self.assertRaisesRegex(ValueError, "the tokenizer cannot cut a text: .*Missing"):
            load_tokenizer(path).encode("a")


if __name__ == "__main__":
    absltest.main()
