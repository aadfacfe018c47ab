"""What --help and --helpfull print."""

import contextlib
import io
import sys
import types
from unittest import mock

from absl import flags
from absl.testing import absltest, parameterized
from ml_collections import config_flags

from experiments.program import startup
from tests.programs import ROOT

CONFIG = ROOT / "experiments" / "configs" / "kv_quick.py"
DOCSTRING = "Does a thing,\nand says so.\n\nExample:\n  a --b \\\n      c\n"
PROGRAM = types.ModuleType(
    "__main__", "Does a thing,\nand says so.\n\nExample:\n  a --b \\\n      c\n"
)


def own_flags(words: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    for name, define in (("size", flags.DEFINE_integer), ("rate", flags.DEFINE_float)):
        define(name, 2, "How much.", flag_values=values)
    flags.DEFINE_bool("show", True, "Whether to show.", flag_values=values)
    flags.DEFINE_multi_string("vary", ["a=1,2", "b=3"], "May be repeated.", flag_values=values)
    flags.DEFINE_string("a_name_that_is_as_long_as_the_column", None, "Odd.", flag_values=values)
    flags.DEFINE_integer("library", 5, "Not ours.", flag_values=values, module_name="absl.app")
    config_flags.DEFINE_config_file("config", str(CONFIG), flag_values=values, sys_argv=words)
    for flag in values:
        if flag != "library":
            values.register_key_flag_for_module(sys.argv[0], values[flag])
    return values


class HelpTextTest(parameterized.TestCase):
    def said(self, *words: str) -> str:
        with (
            mock.patch.object(flags, "FLAGS", own_flags([sys.argv[0], *words])),
            mock.patch.dict(sys.modules, {"__main__": PROGRAM}),
            contextlib.redirect_stdout(io.StringIO()) as out,
            self.assertRaises(SystemExit) as ended,
        ):
            startup.parse_flags([sys.argv[0], *words])
        self.assertEqual(ended.exception.code, 0)
        return out.getvalue()

    @parameterized.parameters("--help", "-?", "--helpshort")
    def test_short(self, word):
        text = self.said(word)
        self.assertStartsWith(text, "Does a thing, and says so.\n\nExample:\n  a --b \\\n      c\n")
        self.assertIn("\n  --size=2                  How much.\n", text)
        self.assertIn("\n  --[no]show                Whether to show. Default: yes.\n", text)
        self.assertIn("\n  --vary                    May be repeated. Default: a=1,2 b=3.\n", text)
        self.assertIn(f"\n  --a_name_that_is_as_long_as_the_column\n{'':28}Odd.\n", text)
        self.assertIn("Default:\n" + " " * 28 + "experiments/configs/kv_quick.py.", text)
        self.assertNotIn("--library", text)

    def test_full(self):
        text = self.said("--helpfull")
        ours, _, rest = text.partition("Fields of this --config")
        fields, _, theirs = rest.partition("Of libraries:")
        self.assertIn("--size=2                  How much. (an integer)\n", ours)
        self.assertIn("\n  --config.data.num_pairs=4\n", fields)
        self.assertIn("--library=5", theirs)

    @parameterized.parameters(
        ("--helpfull", f"--config={CONFIG}:rmt", "--size=3"),
        (f"--config={CONFIG}:rmt", "--size=3", "--helpfull"),
        ("word", "--helpfull", f"--config={CONFIG}:rmt", "--", "--help"),
    )
    def test_values_that_stand_beside_it(self, *words):
        text = self.said(*words)
        self.assertIn("\n  --config.method=rmt\n", text)
        self.assertNotIn("--config.method=gradmem", text)

    @parameterized.parameters("--no_such_flag", "--size=much", "--config=/no/such/file.py")
    def test_what_is_wrong_beside_it(self, word):
        self.assertIn("--size=2", self.said(word, "--help"))
        self.assertIn("--size=2", self.said("--helpfull", word))

    def test_nobody_reads_it(self):
        with (
            mock.patch.object(flags, "FLAGS", own_flags(["x"])),
            mock.patch.object(startup.console, "say", side_effect=BrokenPipeError),
            mock.patch.object(startup, "_drop_output") as dropped,
            self.assertRaises(SystemExit) as ended,
        ):
            startup.parse_flags(["x", "--help"])
        self.assertEqual(ended.exception.code, 1)
        dropped.assert_called_once()

    def test_commands_stand_as_they_are_typed(self):
        for path in (ROOT / "experiments").glob("*.py"):
            self.assertNotRegex(path.read_text().split('"""')[1], r"(?m)^python -m", path)


if __name__ == "__main__":
    absltest.main()
