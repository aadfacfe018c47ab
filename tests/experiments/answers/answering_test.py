"""Answers on a terminal: a line each, and nothing in them that steers it."""

import contextlib
import io
import json
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.answers.answering import ask_in_a_loop, show

HOSTILE = "a\x1b[2J\nerror: forged\r\ud800 \u202e😀"


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
