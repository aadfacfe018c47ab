"""README and docs: the code runs, the commands have flags and fields that exist, links lead on."""

import importlib.util
import os
import pathlib
import re
import shlex

import numpy as np
from absl.testing import absltest, parameterized

from experiments.run.build import build
from tests.programs import start

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = {  # and their source
    path.stem: text
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "startup.run(main" in (text := path.read_text())
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(program: str) -> list[list[str]]:
    """Arguments of every call of a program in README and docs."""
    found = []
    for page in PAGES:
        for block in code_blocks(page, "sh"):
            for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
                words = shlex.split(line, comments=True)
                if f"experiments.{program}" in words:
                    found.append(words[words.index(f"experiments.{program}") + 1 :])
    return found


class ReadmeTest(parameterized.TestCase):
    def test_python_code_runs(self):
        names = {}
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(self.create_tempdir().full_path)
        os.symlink(ROOT / "experiments", "experiments")
        for block in code_blocks(ROOT / "README.md", "python"):
            exec(compile(block, "README.md", "exec"), names)
        self.assertEqual(names["memory"].shape, (4, 8, 128))
        self.assertEqual(names["answers"].shape, (4, 3, 5))
        np.testing.assert_array_equal(names["again"], names["answers"])
        self.assertTrue(np.isfinite(names["loss"]))
        self.assertEqual(names["state_logits"].shape, (4, 3, 7, 256))
        self.assertEqual(names["place"], "office")
        for name, value in names["made"].items():
            np.testing.assert_array_equal(names["stored"][name], value)

    def test_training_commands_configure_what_exists(self):
        self.assertNotEmpty(commands("train"))
        for words in commands("train"):
            options = dict(word.removeprefix("--").split("=", 1) for word in words)
            self.assertIn("workdir", options)
            path, _, argument = options.pop("config", "experiments/configs/kv_quick.py").partition(
                ":"
            )
            spec = importlib.util.spec_from_file_location("config", ROOT / path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            config = module.get_config(*[argument] if argument else [])
            fields = config.copy_and_resolve_references()
            for name in options:
                if name != "workdir":
                    group = fields
                    for part in name.removeprefix("config.").split("."):
                        self.assertIn(part, group, f"{name} in {words}")
                        group = group[part]
            if "data_dir" not in fields.data:  # else it needs files that no clone has
                build(config)

    @parameterized.parameters(*PROGRAMS)
    def test_help_explains_every_flag(self, program):
        text, source = start(program, "--help").stdout, PROGRAMS[program]
        self.assertIn(text.split(".")[0].strip(), source)
        for module in re.findall(r"adopt_module_key_flags\((\w+)\)", source):
            source += next((ROOT / "experiments").rglob(f"{module}.py")).read_text()
        known = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source)
        used = [word for words in commands(program) for word in words if word.startswith("--")]
        for name in known + [re.match(r"--(\w+)", word)[1] for word in used]:
            self.assertRegex(text, rf"--(\[no\])?{name}\b")

    def test_commands_are_of_programs(self):
        text = "".join(page.read_text() for page in PAGES)
        self.assertEmpty(set(re.findall(r"-m experiments\.(\w+)", text)) - PROGRAMS.keys())

    def test_links_lead_to_files(self):
        for page in PAGES:
            for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
                self.assertTrue((page.parent / target).exists(), f"{target} in {page}")


if __name__ == "__main__":
    absltest.main()
