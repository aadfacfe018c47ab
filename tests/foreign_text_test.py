"""Text of others: nothing that a terminal obeys, nothing longer than a screen."""

import json
import unicodedata

from absl.testing import absltest, parameterized

from gradmem_jax.checks import require, require_integer
from gradmem_jax.foreign_text import LONGEST_MESSAGE, one_line, printable, shortened, shown

HOSTILE = "a\x1b[2Jb\r\x07\x08\x7f\x9b\u202ec\u2028d\U000e0001"


class ForeignTextTest(parameterized.TestCase):
    def test_what_a_terminal_obeys_is_escaped_as_json_does(self):
        text = printable(HOSTILE)
        self.assertTrue(text.isprintable())
        self.assertEqual(json.loads(f'"{text}"'), HOSTILE)

    @parameterized.parameters("", "plain", "two\nlines\tand a tab", "Zürich, 東京, 😀")
    def test_other_text_stays(self, text):
        self.assertEqual(printable(text), text)

    def test_no_control_character_is_left(self):
        every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000)]))
        kinds = {unicodedata.category(c) for c in printable(every) if c not in "\n\t"}
        self.assertEmpty(kinds & {"Cc", "Cf", "Zl", "Zp", "Cs"})

    def test_one_line(self):
        self.assertEqual(one_line("a\nerror: b\tc"), r"a\nerror: b\tc")
        self.assertEqual(shortened("x" * LONGEST_MESSAGE), "x" * LONGEST_MESSAGE)
        text = one_line("first" + "x" * 10**6 + "last")
        self.assertLess(len(text), 1.05 * LONGEST_MESSAGE)
        self.assertRegex(text, "^firstx+ .* 998009 characters .* x+last$")

    @parameterized.named_parameters(
        ("text", lambda: "x" * 10**6),
        ("list", lambda: [[1] * 10**5]),
        ("bytes", lambda: {"a": b"\x1b" * 10**5}),
        ("number", lambda: 10**5000),
    )
    def test_a_value_is_a_line_at_most(self, make):
        value = make()
        self.assertLess(len(shown(value)), 160)
        self.assertTrue(shown(value).isprintable())
        with self.assertRaisesRegex(ValueError, "^size=.* must be an integer") as refused:
            require_integer("size", value, 1)
        self.assertLess(len(str(refused.exception)), 300)

    def test_a_message_is_a_screen_at_most(self):
        with self.assertRaises(ValueError) as refused:
            require(False, "x" * 10**6)
        self.assertLess(len(str(refused.exception)), 1.05 * LONGEST_MESSAGE)


if __name__ == "__main__":
    absltest.main()
