"""Tokenizers of SentencePiece: ids of the package sentencepiece, and files that are damaged."""

import json
import pathlib
import shutil

from absl.testing import absltest, parameterized

from gradmem_jax.tokenizers.text_tokenizer import load_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "sentencepiece"


def field(number, value):
    """A field of a protocol buffer: a short text, or a number below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def piece(text, kind=1):
    return field(1, field(1, text) + field(3, kind))


BPE = field(2, field(3, 2))
SPECIALS = BPE + piece(b"<unk>", 2) + piece(b"<s>", 3) + piece(b"</s>", 3)


class SentencePieceTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def copy(self, name, **files):
        shutil.copy(GOLDEN / f"{name}.model", self.folder / "tokenizer.model")
        for file, content in files.items():
            (self.folder / f"{file}.json").write_text(json.dumps(content))
        return load_tokenizer(self.folder)

    @parameterized.parameters("llama", "gemma", "unigram", "unigram_bytes")
    def test_ids_are_those_of_sentencepiece(self, name):
        golden = json.loads((GOLDEN / "ids.json").read_text())
        tokenizer = load_tokenizer(GOLDEN / f"{name}.model")
        for text, want in zip(golden["texts"], golden["ids"][name], strict=True):
            self.assertEqual(tokenizer.encode(text).tolist(), want, repr(text))
            if name != "unigram" and "\u2581" not in text:  # that one has no bytes
                self.assertEqual(tokenizer.decode(want), text)
        saved = self.folder / "tokenizer.json"
        tokenizer.save(saved)
        again = load_tokenizer(saved)
        self.assertEqual(again.watch, (False, False))
        self.assertEqual((again.begin_id, again.pad_id), (tokenizer.begin_id, tokenizer.pad_id))
        for text, want in zip(golden["texts"], golden["ids"][name], strict=True):
            self.assertEqual(again.encode(text).tolist(), want)

    def test_special_tokens_are_those_of_the_files(self):
        tokenizer = self.copy("llama")
        self.assertEqual((tokenizer.pad_id, tokenizer.begin_id, tokenizer.end_id), (2, 1, 2))
        self.assertEqual(tokenizer.encode_start("a").tolist(), [1, *tokenizer.encode("a")])
        tokenizer = self.copy("gemma")
        self.assertEqual((tokenizer.pad_id, tokenizer.begin_id, tokenizer.end_id), (0, 2, 1))
        tokenizer = self.copy("llama", tokenizer_config={"add_bos_token": False})
        self.assertIsNone(tokenizer.begin_id)
        self.assertEqual(tokenizer.encode_start("a").tolist(), tokenizer.encode("a").tolist())
        tokenizer = self.copy(
            "llama",
            tokenizer_config={
                "added_tokens_decoder": {
                    "0": {"content": "<unk>", "special": True},
                    "401": {"content": "<think>", "special": False},
                }
            },
            added_tokens={"<pad>": 400},
            special_tokens_map={"pad_token": {"content": "<pad>"}, "eos_token": "</s>"},
        )
        self.assertEqual((tokenizer.pad_id, tokenizer.vocab_size), (400, 402))
        self.assertIn(401, tokenizer.encode("a<think>b").tolist())
        self.assertEqual(tokenizer.decode([401, 400]), "<think>")

    @parameterized.parameters(
        (dict(added_tokens={"<x>": 500}), "'<x>' with the id 500, and its place is 400"),
        (dict(added_tokens={"<x>": "1"}), "'1' is no id"),
        (dict(tokenizer_config={"added_tokens_decoder": {"1": {}}}), "is no token"),
        (dict(tokenizer_config={"added_tokens_decoder": [1]}), "is no object"),
        (dict(tokenizer_config={"add_bos_token": 3}), "add_bos_token=3 is no truth value"),
    )
    def test_files_beside_it_that_are_damaged(self, files, message):
        with self.assertRaisesRegex(ValueError, message):
            self.copy("llama", **files)

    @parameterized.named_parameters(
        ("empty", b"", "it has no pieces"),
        ("untrained", piece(b"<unk>", 2), "ends before it says how"),
        ("cut", SPECIALS[:-2], "cut short"),
        ("unfinished", SPECIALS + b"\x80", "tokenizer.model"),
        ("twice", SPECIALS + piece(b"<s>"), "a piece stands twice"),
        ("no unknown", BPE + piece(b"a"), "0 unknown pieces"),
        ("kind", SPECIALS + piece(b"a", 9), "9 is not a valid"),
        ("words", SPECIALS + field(2, field(3, 3)), "model_type is 3"),
        ("a number", field(1, 7), "a number where a text belongs"),
        ("charsmap", SPECIALS + field(3, field(2, 5)), "a number where a text"),
        ("utf8", SPECIALS + piece(b"\xff"), "utf-8"),
    )
    def test_damaged(self, content, message):
        path = self.folder / "tokenizer.model"
        path.write_bytes(content)
        with self.assertRaisesRegex(ValueError, message):
            load_tokenizer(path)

    def test_every_cut_is_refused(self):
        whole = (GOLDEN / "llama.model").read_bytes()
        path = self.folder / "tokenizer.model"
        for length in range(0, len(whole), 211):
            path.write_bytes(whole[:length])
            with self.subTest(length), self.assertRaises(ValueError):
                load_tokenizer(path)


if __name__ == "__main__":
    absltest.main()
