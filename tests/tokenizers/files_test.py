"""Tokenizers in the files of GGUF and llama2.c."""

import pathlib
import struct

import gguf
import tokenizers
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, processors

from gradmem_jax.tokenizers.files import read_gguf_tokenizer
from gradmem_jax.tokenizers.special_tokens import SpecialTokens
from gradmem_jax.tokenizers.text_tokenizer import (
    UNKNOWN,
    load_tokenizer,
    word_tokenizer,
    wrap_tokenizer,
)
from tests.shared_data import data_dir

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do."
)


def stories_tokenizer():
    return data_dir() / "stories260K" / "tok512.bin"


def plain_encode(pieces, scores, text):
    """The loop of llama2.c: the best pair of neighbours merges, the first one of equals."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    tokens = [ids[" "]] if text else []
    for symbol in text:
        tokens += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    while True:
        pairs = [
            (scores[ids[pieces[a] + pieces[b]]], -i)
            for i, (a, b) in enumerate(zip(tokens, tokens[1:], strict=False))
            if pieces[a] + pieces[b] in ids
        ]
        if not pairs:
            return tokens
        i = -max(pairs)[1]
        tokens[i : i + 2] = [ids[pieces[tokens[i]] + pieces[tokens[i + 1]]]]


def read_pieces(path):
    content, place, found = path.read_bytes(), 4, []
    while place < len(content):
        score, length = struct.unpack_from("<fi", content, place)
        found.append((content[place + 8 : place + 8 + length].decode(), score))
        place += 8 + length
    return zip(*found, strict=True)


def byte_level(kind, *more):
    """Writes a vocabulary of bytes and a few words, and more words without merges."""
    alphabet = sorted({c for c in "\u0120abcdefghijklmnopqrstuvwxyzABC'0123456789.!\u010a"})
    pieces = ["<|end|>", *alphabet, "th", "the", "\u0120the", "12", *more, "<|tool|>"]
    types = [3, *[1] * (len(pieces) - 2), 4]

    def write(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind)
        writer.add_token_list(pieces)
        writer.add_token_types(types)
        writer.add_token_merges(["t h", "th e", "\u0120 the", "1 2"])
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(1)

    return pieces, write


class GGUFTokenizerTest(parameterized.TestCase):
    def load(self, tokenizer):
        path = pathlib.Path(self.create_tempdir().full_path) / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        tokenizer(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return load_tokenizer(path.parent)

    def test_no_tokenizer(self):
        with self.assertRaisesRegex(ValueError, "holds no tokenizer"):
            self.load(lambda writer: None)

    @parameterized.parameters(
        ("gpt-2", ["\u0120the", "12", "3"]),
        ("smollm", ["\u0120the", "1", "2", "3"]),
        ("llama-bpe", ["\u0120the", "\u0120", "12", "3"]),
        ("llama-v3", ["\u0120the", "\u0120", "12", "3"]),
        ("smaug-bpe", ["\u0120the", "\u0120", "12", "3"]),
        ("qwen2", ["\u0120the", "\u0120", "1", "2", "3"]),
    )
    def test_byte_level(self, kind, want):
        pieces, write = byte_level(kind)
        tokenizer = self.load(write)
        text = " the123" if kind in ("gpt-2", "smollm") else " the 123"
        self.assertEqual([pieces[i] for i in tokenizer.encode(text)], want)
        self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)
        self.assertEqual((tokenizer.pad_id, tokenizer.end_id), (0, 0))
        self.assertEqual(pieces[tokenizer.encode("a<|tool|>b")[1]], "<|tool|>")
        self.assertEqual(tokenizer.decode([0, *tokenizer.encode("abc"), 0]), "abc")
        self.assertEqual(tokenizer.vocab_size, len(pieces))
        adds_begin = kind in ("llama-bpe", "llama-v3")
        self.assertEqual(tokenizer.begin_id, 1 if adds_begin else None)

    @parameterized.parameters(("gpt-2", ["d", "o", "g"]), ("llama-bpe", ["dog"]))
    def test_pieces_that_no_merge_makes(self, kind, want):
        pieces, write = byte_level(kind, "dog")
        self.assertEqual([pieces[i] for i in self.load(write).encode("dog")], want)

    def test_unknown_kinds(self):
        with self.assertRaisesRegex(ValueError, "tokenizer.ggml.pre='default' is not known; name"):
            self.load(byte_level("default")[1])
        with self.assertRaisesRegex(ValueError, "tokenizer.ggml.model='bert' is not known"):
            self.load(
                lambda writer: (writer.add_tokenizer_model("bert"), writer.add_token_list("ab"))
            )

    @parameterized.parameters(
        ("llama", dict(scores=[0.0]), "scores has not one value for each of 4 pieces"),
        ("llama", dict(token_type=[1]), "token_type has not one value"),
        ("llama", dict(eos_token_id=99), "eos_token_id=99 is none of the ids of 4 pieces"),
        ("llama", dict(eos_token_id=-1), "eos_token_id=-1"),
        ("llama", dict(eos_token_id=0, padding_token_id=4), "padding_token_id=4"),
        ("gpt2", dict(merges=["a"]), "merges has 'a'"),
        ("gpt2", dict(merges=["a b"]), "merges has 'a b', which makes no piece"),
    )
    def test_damaged(self, model, changes, message):
        fields = dict(model=model, tokens=["<unk>", "<s>", "a", "\u2581"]) | changes
        fields = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
        with self.assertRaisesRegex(ValueError, f"x.gguf has a damaged tokenizer.*{message}"):
            read_gguf_tokenizer(fields, "x.gguf")

    @parameterized.parameters((True, ["\u2581", "ab", "c"]), (False, ["ab", "c"]))
    def test_scored_pieces(self, add_space, want):
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
        words = ["\u2581", "a", "b", "c", "bc", "ab"]

        def write(writer):
            writer.add_tokenizer_model("llama")
            writer.add_token_list(pieces + words)
            writer.add_token_scores([0.0] * len(pieces) + [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0])
            writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 6])
            writer.add_eos_token_id(2)
            writer.add_add_space_prefix(add_space)

        tokenizer = self.load(write)
        self.assertEqual([(pieces + words)[i] for i in tokenizer.encode("abc")], want)
        self.assertEqual(tokenizer.encode("\u00e9")[-2:].tolist(), [3 + 0xC3, 3 + 0xA9])
        for text in ("abc", "a b\u00e9\U0001f600c"):
            self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)


class TextTokenizerTest(parameterized.TestCase):
    def test_special_tokens_are_not_decoded(self):
        tokenizer = word_tokenizer(["a b"])
        ids = tokenizer.encode("a x b").tolist()
        self.assertEqual(tokenizer.backend.id_to_token(ids[1]), UNKNOWN)
        self.assertEqual(tokenizer.decode([*ids, tokenizer.end_id, tokenizer.pad_id]), "a b")

    def test_padding_is_what_is_there(self):
        pieces = {"<unk>": 0, "</s>": 1, "a": 2, "<p>": 3}
        backend = tokenizers.Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
        self.assertEqual(wrap_tokenizer(backend).pad_id, 1)  # a usual name
        named = SpecialTokens(pad="not there", end="</s>")
        self.assertEqual(wrap_tokenizer(backend, special=named).pad_id, 0)
        self.assertEqual(wrap_tokenizer(backend, special=named, pad_token="<p>").pad_id, 3)
        with self.assertRaisesRegex(ValueError, "none of .'no',. as its padding token"):
            wrap_tokenizer(backend, pad_token="no")
        backend = tokenizers.Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="a"))
        backend.add_special_tokens(["<eos>"])
        end_only = wrap_tokenizer(backend, special=SpecialTokens(end="<eos>", unknown="?"))
        self.assertEqual((end_only.pad_id, end_only.end_id), (0, 0))

    @parameterized.parameters(
        (None, {}, None),
        ("<s> $A </s>", {}, 0),
        ("$A </s>", {}, None),
        ("<s> $A", dict(begin="<s>", adds_begin=False), None),
        (None, dict(begin="<s>", adds_begin=True), 0),
        ("<s> $A", dict(adds_begin=True), 0),
    )
    def test_what_texts_begin_with(self, single, names, want):
        pieces = {"<s>": 0, "</s>": 1, "a": 2, "[UNK]": 3}
        backend = tokenizers.Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
        if single:
            backend.post_processor = processors.TemplateProcessing(
                single=single, special_tokens=[("<s>", 0), ("</s>", 1)]
            )
        tokenizer = wrap_tokenizer(backend, special=SpecialTokens(**names))
        self.assertEqual(tokenizer.begin_id, want)
        self.assertEqual(tokenizer.encode("a").tolist(), [2])
        self.assertEqual(tokenizer.encode_start("a").tolist(), [2] if want is None else [0, 2])
        self.assertEqual(tokenizer.decode([0, 2]), "a" if want == 0 else "<s> a")

    def test_ids_with_gaps(self):
        vocabulary = {"[PAD]": 0, "[END]": 1, "[UNK]": 2, "a": 5}
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer = wrap_tokenizer(backend)
        self.assertEqual(tokenizer.vocab_size, 6)
        self.assertEqual(tokenizer.decode(tokenizer.encode("a")), "a")


class Llama2cTokenizerTest(parameterized.TestCase):
    @settings(max_examples=200, deadline=None)
    @given(st.text(st.sampled_from("abehintw .,'\nT\u00e9\u4e2d\U0001f600\t"), max_size=40))
    def test_text_is_cut_as_llama2c_does(self, text):
        path = stories_tokenizer()
        pieces, scores = read_pieces(path)
        tokenizer = load_tokenizer(path)
        self.assertEqual(tokenizer.encode(text).tolist(), plain_encode(pieces, scores, text))
        self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)

    def test_a_story_is_cut_as_llama2c_does(self):
        pieces, scores = read_pieces(stories_tokenizer())
        tokenizer = load_tokenizer(stories_tokenizer())
        self.assertEqual(tokenizer.encode(STORY).tolist(), plain_encode(pieces, scores, STORY))

    def test_damaged_files(self):
        content = stories_tokenizer().read_bytes()
        path = pathlib.Path(self.create_tempdir().full_path) / "tok9.bin"
        for damaged in (content[:-1], content[:4], content + content[-9:], b"\xff" * 40):
            path.write_bytes(damaged)
            with self.assertRaisesRegex(ValueError, "no tokenizer of llama2.c, or damaged"):
                load_tokenizer(path)


if __name__ == "__main__":
    absltest.main()
