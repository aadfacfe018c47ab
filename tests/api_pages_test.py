"""Every public name stands on a page of docs/api, with an example that runs."""

import ast
import contextlib
import doctest
import functools
import pathlib
import re
from typing import Any

from absl.testing import absltest, parameterized

import gradmem_jax
import gradmem_jax.lm

ROOT = pathlib.Path(__file__).parents[1]
API = ROOT / "docs" / "api"


def names_on(*pages: pathlib.Path) -> list[str]:
    return re.findall(r"^::: gradmem_jax\.(\S+)$", "".join(p.read_text() for p in pages), re.M)


def names_on_pages() -> list[str]:
    return names_on(*sorted(API.glob("*.md")))


@functools.cache
def starting_names() -> dict[str, Any]:
    """What the block of code in docs/api/index.md defines."""
    (start,) = re.findall(r"^```python\n(.*?)^```", (API / "index.md").read_text(), re.M | re.S)
    names = {"__name__": __name__}
    exec(compile(start, "docs/api/index.md", "exec"), names)
    return names


@functools.cache
def parsed(module: str) -> ast.Module:
    path = ROOT / "gradmem_jax" / module.replace(".", "/")
    return ast.parse(
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    )


def defined_in(name: str) -> tuple[str, str]:
    """The module below gradmem_jax that defines a name, and what it is called there."""
    module, _, word = name.rpartition(".")
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom) and any(word == alias.name for alias in node.names):
            return node.module.removeprefix("gradmem_jax."), word
    return module, word


def docstring(module: str, word: str) -> str:
    """That of a class, a function or a value, "" if it has none."""
    body = parsed(module).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if getattr(node, "name", "") == word:
            return ast.get_docstring(node) or ""
        targets = [getattr(target, "id", "") for target in getattr(node, "targets", [])]
        if word in targets and isinstance(following, ast.Expr):
            return ast.literal_eval(following.value)
    return ""


class ApiPagesTest(parameterized.TestCase):
    def test_every_public_name_has_one_entry(self):
        entries = [defined_in(name) for name in names_on_pages()]
        self.assertCountEqual(entries, set(entries))
        public = {defined_in(name) for name in gradmem_jax.__all__}
        public |= {defined_in(f"lm.{name}") for name in gradmem_jax.lm.__all__}
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
            for module, words in re.findall(
                r"^from gradmem_jax\.([\w.]+) import ([\w, ]+)$", page.read_text(), re.M
            ):
                if module != "parallel":  # that has modules
                    public |= {(module, word) for word in words.split(", ")}
        self.assertContainsSubset(public, entries)

    def test_every_entry_has_an_example(self):
        for name in names_on_pages():
            self.assertIn(">>> ", docstring(*defined_in(name)), name)

    @parameterized.parameters(*sorted(page.stem for page in API.glob("*.md")))
    def test_examples_run(self, page):
        known, said = starting_names(), []
        parser = doctest.DocTestParser()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        with contextlib.chdir(self.create_tempdir().full_path):
            for name in names_on(API / f"{page}.md"):
                module, word = defined_in(name)
                test = parser.get_doctest(docstring(module, word), known, word, module, 0)
                runner.run(test, out=said.append)
        self.assertEqual(runner.failures, 0, "".join(said))


if __name__ == "__main__":
    absltest.main()
