"""Contexts from files: what is read, what is refused, and how they are put into batches."""

import dataclasses
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from experiments.answers.contexts import (
    Context,
    bucket,
    encode_context,
    make_batches,
    read_contexts,
    warn_of_unknown,
)
from gradmem_jax.tokenizers.characters import CharTokenizer
from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer

TOKENIZER = CharTokenizer("abcdefghij ")


class ReadTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def test_files_patterns_and_lines(self):
        a, b = self.write("a.txt", "one\n"), self.write("b.txt", " é\ntwo\r\n\n")
        lines = self.write("c.jsonl", '{"name": "x", "context": "three"}\n\n{"context": "four"}\n')
        found = read_contexts([str(self.folder / "*.txt"), a, lines])
        want = [(a, "one"), (b, " é\ntwo"), ("x", "three"), (f"{lines}:3", "four")]
        self.assertEqual(found, want)

    def test_a_line_may_hold_other_line_separators(self):
        text = "one\u2028two\u0085three"
        path = self.write("a.jsonl", f'{{"context": "{text}"}}\r\n{{"context": "four"}}')
        self.assertEqual(read_contexts([path]), [(f"{path}:1", text), (f"{path}:2", "four")])

    def test_a_name_may_look_like_a_pattern(self):
        path = self.write("a[1].txt", "one")
        self.assertEqual(read_contexts([path]), [(path, "one")])

    def test_refusals(self):
        empty = self.write("empty.txt", " \n")
        latin = self.write("latin.txt", "é".encode("latin-1"))
        for path, message in (
            (empty, "empty.txt is empty"),
            (latin, "latin.txt is not UTF-8"),
            (str(self.folder), r"is a directory; name its files, as in --context='.*/\*.txt'"),
            (str(self.folder / "none.txt"), "there is no file .*none.txt"),
            (self.write("no.jsonl", "\n"), "no.jsonl is empty"),
            (self.write("a.jsonl", '{"context": "x"}\n{"text": "y"}'), "a.jsonl:2 is no context"),
            (self.write("b.jsonl", "context"), "b.jsonl:1 is no context"),
            (self.write("c.jsonl", '{"context": 3}'), "c.jsonl:1 is no context"),
            (self.write("d.jsonl", '{"context": ""}'), "d.jsonl:1 is empty"),
            (self.write("e.jsonl", "[1]"), "e.jsonl:1 is no context"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                read_contexts([path])


class EncodeTest(parameterized.TestCase):
    def encode(self, text, **options):
        options = dict(pad_id=0, limit=8) | options
        return encode_context(Context("doc", text), TOKENIZER, **options)

    def test_whole_or_in_segments(self):
        np.testing.assert_array_equal(self.encode("abc"), [4, 5, 6])
        np.testing.assert_array_equal(self.encode("abc", segment_tokens=3), [4, 5, 6])
        got = self.encode("abcdefghij", segment_tokens=4)
        np.testing.assert_array_equal(got, [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 0, 0]])

    def test_refusals(self):
        for text, options, message in (
            ("abcdefghi", {}, "doc has 9 tokens, the model takes at most 8 .*--segment_tokens=8"),
            ("abc", {"segment_tokens": 9}, "--segment_tokens=9: the model takes 1 to 8"),
            ("abc", {"pad_id": 5}, "doc holds the padding token 5"),
            ("", {}, "doc has no tokens"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.encode(text, **options)

    def test_a_token_of_beginning_alone_is_nothing_to_write(self):
        tokenizer = dataclasses.replace(word_tokenizer(["Mary went home."]), begin_id=1)
        np.testing.assert_array_equal(tokenizer.encode_start(" "), [1])
        self.assertLen(encode_context(Context("doc", "Mary"), tokenizer, pad_id=0, limit=8), 2)
        with self.assertRaisesRegex(ValueError, "^doc has no tokens: there is nothing to write.$"):
            encode_context(Context("doc", " "), tokenizer, pad_id=0, limit=8)

    def test_unknown_symbols_are_named(self):
        with self.assertLogs("experiments", "WARNING") as logs:
            warn_of_unknown("doc", "abXcéX", TOKENIZER)
        said = "doc: the model does not know 'X', 'é'; unknown words are all the same to it"
        self.assertEndsWith(logs.output[0], said)
        words = word_tokenizer(["Mary went home."])
        self.assertEqual(words.unknown("Mary flew home by plane."), ["flew", "by", "plane"])
        with self.assertNoLogs("experiments"):
            warn_of_unknown("doc", "abc", TOKENIZER)

    def test_buckets(self):
        got = [bucket(n, 100) for n in (1, 16, 17, 64, 65, 100)]
        self.assertEqual(got, [16, 16, 32, 64, 100, 100])

    def test_batches_hold_every_context_once_and_few_shapes(self):
        rng = np.random.default_rng(0)
        contexts = [rng.integers(1, 9, size=n) for n in rng.integers(1, 80, size=40)]
        contexts += [rng.integers(1, 9, size=(2, 7)) for _ in range(5)]
        seen, shapes = [], set()
        for indices, ids in make_batches(contexts, 4, pad_id=0, limit=80):
            shapes.add(ids.shape)
            seen += indices
            self.assertLessEqual(len(ids), 4)
            for row, i in enumerate(indices):
                padding = ids.shape[-1] - contexts[i].shape[-1]
                widths = [(0, 0)] * (contexts[i].ndim - 1) + [(0, padding)]
                np.testing.assert_array_equal(ids[row], np.pad(contexts[i], widths))
            for row in range(len(indices), len(ids)):
                np.testing.assert_array_equal(ids[row], ids[len(indices) - 1])
        self.assertEqual(sorted(seen), list(range(45)))
        self.assertLessEqual(len(shapes), 5)


if __name__ == "__main__":
    absltest.main()
