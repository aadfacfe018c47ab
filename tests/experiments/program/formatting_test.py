"""Metrics, durations and tables as text."""

from absl.testing import absltest, parameterized

from experiments.program import formatting


class FormattingTest(parameterized.TestCase):
    @parameterized.parameters((59.6, "1:00"), (245, "4:05"), (3600, "1:00:00"), (7445, "2:04:05"))
    def test_minutes(self, seconds, want):
        self.assertEqual(formatting.minutes(seconds), want)

    @parameterized.parameters(
        (20.672, "20.7 s"), (1234.5, "1,234 s"), (0.3456, "346 ms"), (0.00012, "0.12 ms")
    )
    def test_brief(self, seconds, want):
        self.assertEqual(formatting.brief(seconds), want)

    @parameterized.parameters((3.096, "3.1"), (0.0484, "0.0484"), (999.7, "1,000"), (0.0, "0"))
    def test_three_digits(self, value, want):
        self.assertEqual(formatting.three_digits(value), want)

    def test_markdown(self):
        table = formatting.markdown(["size", "s"], [[1, 0.12345], [None, 12345.6]])
        self.assertEqual(table, "| size | s |\n| --- | ---: |\n| 1 | 0.123 |\n|  | 12346 |")

    def test_a_text_stays_in_its_cell(self):
        table = formatting.markdown(["a|b"], [["x\n| forged |\x1b[2J"]])
        self.assertEqual(table, "| a\\|b |\n| --- |\n| x\\n\\| forged \\|\\u001b[2J |")

    def test_whole_numbers_are_whole(self):
        text = formatting.describe({"step": 2, "write_loss": 2.0})
        self.assertEqual(text, "step 2, write loss 2.0000")


if __name__ == "__main__":
    absltest.main()
