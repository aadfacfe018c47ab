"""Answers on a terminal: a line each, and nothing in them that steers it."""

import contextlib
import io
import json
import sys
from unittest import mock

import jax
from absl.testing import absltest, parameterized

from experiments.answers.answering import ask_in_a_loop, encode_questions, show
from experiments.answers.contexts import Context
from experiments.answers.open_model import OpenModel
from experiments.answers.writing import write_contexts
from gradmem_jax import FullContext, FullContextConfig, LlamaConfig
from gradmem_jax.tokenizers.characters import kv_tokenizer

HOSTILE = "a\x1b[2J\nerror: forged\r\ud800 \u202e😀"


class RoomTest(parameterized.TestCase):
    """What a model of 128 positions that keeps its whole context has room for."""

    def setUp(self):
        super().setUp()
        tokenizer = kv_tokenizer(62)
        lm = LlamaConfig(
            vocab_size=tokenizer.vocab_size, width=8, num_layers=1, num_heads=1, max_positions=128
        )
        model = FullContext(FullContextConfig(lm=lm))
        params = jax.jit(model.init)(jax.random.key(0))
        self.opened = OpenModel(model, params, tokenizer, None, str, {})

    def write(self, text, **options):
        return write_contexts(self.opened, [Context("a", text)], **options).memory

    @parameterized.parameters((70, 53), (100, 23), (117, 6))
    def test_padding_takes_none(self, num_tokens, room):
        memory = self.write("x" * num_tokens)
        question = encode_questions(self.opened, memory, ["?" * room], 5)
        self.assertEqual(question.shape, (1, room))
        with self.assertRaisesRegex(ValueError, f"{room + 1} tokens; .* room for {room} beside"):
            encode_questions(self.opened, memory, ["?" * (room + 1)], 5)

    def test_nor_does_that_of_segments(self):
        memory = self.write("x" * 100, segment_tokens=20)
        self.assertEqual(self.opened.model.num_memory_positions(memory), 100)


class ShowTest(parameterized.TestCase):
    def shown(self, *, as_json, text=HOSTILE):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            show([HOSTILE], [HOSTILE], [[text]], with_names=True, as_json=as_json)
        (line,) = said.getvalue().splitlines()
        self.assertTrue(line.isprintable())
        return line

    def test_an_answer_is_a_line(self):
        self.assertStartsWith(self.shown(as_json=False), r"a\u001b[2J\nerror: forged\r\ud800 ")

    def test_json_is_what_the_model_said(self):
        want = {"context": HOSTILE, "question": HOSTILE, "answer": HOSTILE}
        self.assertEqual(json.loads(self.shown(as_json=True)), want)

    def test_a_long_answer_is_whole(self):
        self.assertEndsWith(self.shown(as_json=False, text="x" * 10**5), " -> " + "x" * 10**5)

    def test_what_is_typed_may_be_no_text(self):
        asked, errors = [], io.StringIO()

        def ask(question):
            asked.append(question)
            raise ValueError(f"{question!r} \x1b\n")

        keyboard = io.TextIOWrapper(io.BytesIO(b"\xff\nwhat?\n"), encoding="utf-8")
        with mock.patch.object(sys, "stdin", keyboard), contextlib.redirect_stdout(io.StringIO()):
            ask_in_a_loop(ask, "", errors)
        self.assertEqual(asked, ["\udcff", "what?"])
        self.assertEqual(errors.getvalue(), "'\\udcff' \\u001b\\n\n'what?' \\u001b\\n\n")


if __name__ == "__main__":
    absltest.main()
