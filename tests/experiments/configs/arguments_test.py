"""Arguments of configurations: every file declares its own and reads them with one parser."""

import importlib
import inspect
import re

from absl.testing import absltest, parameterized

from experiments.configs import default
from experiments.configs.arguments import Arguments, Parsed
from tests.programs import ROOT

NO_CONFIGS = ("__init__", "arguments", "recipe")
CONFIGS = sorted(
    path.stem for path in (ROOT / "experiments/configs").glob("*.py") if path.stem not in NO_CONFIGS
)
MIXED = Arguments(
    "qa2_rmt_k1",
    cells=("qa#", "squad"),
    methods=("rmt", "armt", "full_context"),
    method="rmt",
    letters="kn",
    needed="n",
    switch="frozen",
)


class ArgumentsTest(parameterized.TestCase):
    @parameterized.parameters(
        (
            "qa12_full_context_k2_n3_frozen",
            Parsed("qa", 12, "full_context", {"k": 2, "n": 3}, True),
        ),
        ("squad_n0", Parsed("squad", 0, "rmt", {"n": 0}, False)),
        ("qa1_armt_n10_k1", Parsed("qa", 1, "armt", {"n": 10, "k": 1}, False)),
    )
    def test_what_is_read(self, text, expected):
        self.assertEqual(MIXED.parse(text), expected)

    @parameterized.parameters(
        *("", "n1", "qa_n1", "qa1", "qa1_k1", "squad2_n1", "squad_lstm_n1", "squad_n1_n2"),
        *("squad_n1_", "_squad_n1", "squad__n1", "squad_n", "squad_n1_frozen_k1", "squad_N1"),
        *("squad_n-1", "squad_n1\n", "squad_m1_n1", "squad_rmt_armt_n1", "squad_n1_frozen_frozen"),
    )
    def test_what_is_refused(self, text):
        with self.assertRaisesRegex(ValueError, "must look like 'qa2_rmt_k1': one of .*, n among"):
            MIXED.parse(text)

    @parameterized.parameters(*CONFIGS)
    def test_every_configuration(self, name):
        module = importlib.import_module(f"experiments.configs.{name}")
        usual = module.get_config()
        if name == "default":  # its parameters are those of a function, not of an argument
            return
        (parameter,) = inspect.signature(module.get_config).parameters.values()
        same = module.get_config(parameter.default)
        self.assertEqual(usual.to_dict(), same.to_dict())
        module.get_config(module.ARGUMENTS.example)
        for text in ("", "x", f"{parameter.default}_", f"{parameter.default}_x1", "lstm_n8", "a b"):
            with self.assertRaises(ValueError) as refused:
                module.get_config(text)
            message = str(refused.exception)
            self.assertStartsWith(message, f"config argument {text!r} must look like ")
            self.assertIn(repr(module.ARGUMENTS.example), message)
            self.assertNotIn("\n", message)

    @parameterized.parameters(*(name for name in CONFIGS if name != "default"))
    def test_the_method_that_is_named_is_the_one_that_is_trained(self, name):
        module = importlib.import_module(f"experiments.configs.{name}")
        (parameter,) = inspect.signature(module.get_config).parameters.values()
        usual = re.sub(r"_[km]\d+", "", parameter.default)
        named = rf"(?<![a-z])({'|'.join(module.ARGUMENTS.methods)})(?![a-z])"
        for method in module.ARGUMENTS.methods:
            text = re.sub(named, method, usual) if re.search(named, usual) else f"{method}_{usual}"
            wanted = "full_context" if method == "limited" else method
            self.assertEqual(module.get_config(text).method, wanted, text)

    def test_one_configuration_for_methods_with_other_fields(self):
        for method, has_heads in (("gradmem", True), ("mamba", False)):
            config = default.get_config(method)
            default.set_known(config.lm, width=24, num_heads=3, state_size=5)
            self.assertEqual((config.lm.width, "num_heads" in config.lm), (24, has_heads))
            name, value = ("num_heads", 3) if has_heads else ("state_size", 5)
            self.assertEqual(config.lm[name], value)


if __name__ == "__main__":
    absltest.main()
