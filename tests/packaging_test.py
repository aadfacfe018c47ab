"""What is imported is declared in setup.cfg or requirements.txt; importing us is cheap."""

import ast
import configparser
import functools
import importlib.metadata
import pathlib
import re
import sys

from absl.testing import absltest, parameterized

import gradmem_jax

ROOT = pathlib.Path(__file__).parents[1]
OUR_OWN = {"gradmem_jax", "experiments", "tests"}
# It runs in an environment and a checkout of the official code, whose module it imports.
REFERENCE_RUNNER = "experiments/speed/reference_runner.py"
OFFICIAL_CODE = "grad_memgpt"
OPTIONAL = {  # beginnings of paths of what is imported only where a user asks for it; its extra
    "experiments/demo_page/": "demo",
    "gradmem_jax/storage/hub.py": "hub",
    "experiments/run/wandb_writer.py": "wandb",
}


# All that `import gradmem_jax` may import: it must not take a second, nor touch a device.
AT_IMPORT = {"absl", "chex", "flax", "jax", "numpy", "optax", "typing_extensions"}
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


def at_import(body):
    """Absolute names of what a module imports when it is imported itself."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield from at_import(ast.iter_child_nodes(node))


def imported_with(module):
    """Our files that importing a module runs, and what of others these import."""
    files, others, left = set(), set(), [module]
    while left:
        name = left.pop()
        parts = name.split(".")
        if parts[0] not in OUR_OWN:
            others.add(name)
            continue
        stems = [ROOT.joinpath(*parts[: i + 1]) for i in range(len(parts))]
        found = {f for stem in stems for f in (stem / "__init__.py", stem.with_suffix(".py"))}
        for file in {file for file in found if file.is_file()} - files:
            files.add(file)
            left += at_import(ast.parse(file.read_text()).body)
    return {file.relative_to(ROOT).as_posix() for file in files}, others


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
        self.core = config["options"]["install_requires"].split()
        self.requirements = (ROOT / "requirements.txt").read_text()

    def declared(self, path):
        core, clone = map(distribution_names, ("\n".join(self.core), self.requirements))
        if path == REFERENCE_RUNNER:
            return self.extras["reference"] | distribution_names(OFFICIAL_CODE)
        if path.startswith("tests/"):
            return clone.union({"docs"}, *self.extras.values())  # and docs/figures.py
        is_core = path.startswith("gradmem_jax/") and not path.startswith("gradmem_jax/data/")
        more = (self.extras[extra] for name, extra in OPTIONAL.items() if path.startswith(name))
        return (core if is_core else clone).union(*more)

    @parameterized.parameters("gradmem_jax", "experiments", "tests")
    def test_all_are_declared(self, folder):
        paths = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"{folder}/**/*.py"))
        self.assertNotEmpty(paths)
        found = {path: undeclared((ROOT / path).read_text(), self.declared(path)) for path in paths}
        self.assertEmpty({path: names for path, names in found.items() if names})

    def test_a_clone_needs_what_the_library_needs(self):
        self.assertNotEmpty(self.core)
        self.assertEmpty(set(self.core) - set(self.requirements.splitlines()))

    def test_importing_the_library_is_cheap(self):
        files, others = imported_with("gradmem_jax")
        self.assertContainsSubset({"gradmem_jax/memory/gradmem.py", "gradmem_jax/trees.py"}, files)
        foreign = {name for name in others if name.split(".")[0] not in sys.stdlib_module_names}
        self.assertEmpty({name for name in foreign if name.split(".")[0] not in AT_IMPORT})
        self.assertEmpty({name for name in foreign if "pallas" in name})

    def test_finds_what_makes_an_import_slow(self):
        _, others = imported_with("gradmem_jax.storage.checkpoint")
        self.assertIn("orbax.checkpoint", others)
        source = "import a\nif TYPE_CHECKING: import b\ntry: from c import d\nexcept E: import e"
        names = at_import(ast.parse(f"{source}\ndef f(): import g\nclass X: import h").body)
        self.assertEqual([*names], ["a", "c.d", "e", "h"])

    def test_what_is_cited_is_this_version(self):
        cited = (ROOT / "docs" / "CITATION.cff").read_text()
        self.assertIn(f"\nversion: {gradmem_jax.__version__}\n", cited)
        self.assertIn(f"\n## {gradmem_jax.__version__}\n", (ROOT / "docs/CHANGELOG.md").read_text())

    def test_names_that_are_imported_late(self):
        self.assertContainsSubset(set(gradmem_jax.__all__), set(dir(gradmem_jax)))
        self.assertEqual(gradmem_jax.load_params.__name__, "load_params")
        self.assertEmpty([name for name in gradmem_jax.__all__ if not hasattr(gradmem_jax, name)])
        with self.assertRaisesRegex(AttributeError, "'gradmem_jax' has no attribute 'load_prams'"):
            _ = gradmem_jax.load_prams

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
