"""What is imported is declared: in requirements.txt or, for tests, in the extras of setup.cfg."""

import ast
import configparser
import functools
import importlib.metadata
import pathlib
import re
import sys

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
OUR_OWN = {"gradmem_jax", "experiments", "tests"}
# It runs in an environment and a checkout of the official code, whose module it imports.
REFERENCE_RUNNER = "experiments/speed/reference_runner.py"
OFFICIAL_CODE = "grad_memgpt"


packages_of_modules = functools.cache(importlib.metadata.packages_distributions)


def distribution_names(requirements):
    """Names of packages without versions and extras, as registries compare them."""
    lines = [line.split("#")[0].strip() for line in requirements.splitlines()]
    names = [re.match(r"[\w.-]+", line).group() for line in lines if line]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def imported_modules(source):
    """First names of all absolute imports, wherever in the source they stand."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def undeclared(source, declared):
    """Modules that a source imports from packages that are not declared."""
    packages = packages_of_modules()
    others = imported_modules(source) - OUR_OWN - sys.stdlib_module_names
    return {
        name
        for name in others
        if not distribution_names("\n".join(packages.get(name, [name]))) & declared
    }


class ImportsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg")
        self.extras = {
            name: distribution_names(text)
            for name, text in config["options.extras_require"].items()
        }
        self.required = distribution_names((ROOT / "requirements.txt").read_text())

    def declared(self, path):
        if path == REFERENCE_RUNNER:
            return self.extras["reference"] | distribution_names(OFFICIAL_CODE)
        if path.startswith("tests/"):
            return self.required.union({"docs"}, *self.extras.values())  # and docs/figures.py
        return self.required

    @parameterized.parameters("gradmem_jax", "experiments", "tests")
    def test_all_are_declared(self, folder):
        paths = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"{folder}/**/*.py"))
        self.assertNotEmpty(paths)
        found = {path: undeclared((ROOT / path).read_text(), self.declared(path)) for path in paths}
        self.assertEmpty({path: names for path, names in found.items() if names})

    def test_finds_one_that_is_not(self):
        source = "import os\ndef f():\n  import numpy.linalg\n  from scipy import optimize\n"
        self.assertEqual(undeclared(source, {"numpy"}), {"scipy"})
        self.assertEqual(undeclared("from absl import app\nfrom . import x", {"absl-py"}), set())
        self.assertEqual(undeclared("import nowhere_installed", {"numpy"}), {"nowhere_installed"})

    def test_names_of_requirements(self):
        text = "# a comment\nabsl-py>=2.5,<3\nimportlib_resources\njax[cuda12]  # more\n\n"
        self.assertEqual(distribution_names(text), {"absl-py", "importlib-resources", "jax"})


if __name__ == "__main__":
    absltest.main()
