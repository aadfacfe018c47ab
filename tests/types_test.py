"""Two type checkers take the code of README and docs, as users who check their own would see it."""

import json
import os
import subprocess
import sys

from absl.testing import absltest

from tests.docs_test import PAGES, ROOT, code_blocks

# Calls of functions of JAX and Flax that have no annotations are allowed.
STRICT = """[mypy]
strict = True
disallow_untyped_calls = False
follow_imports = silent
ignore_missing_imports = True
"""


class TypesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir()
        self.pages = []
        for page in PAGES:
            code = "\n".join(code_blocks(page, "python"))
            if code:
                name = page.stem.lower() + "_page.py"
                self.pages.append(self.folder.create_file(name, code).full_path)

    def run_checker(self, name, *arguments):
        command = [sys.executable, "-m", name, *arguments, *self.pages]
        environment = os.environ | {"MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.folder.full_path, env=environment
        )
        return done.stdout + done.stderr

    def run_mypy(self):
        config = self.folder.create_file("mypy.ini", STRICT).full_path
        return self.run_checker("mypy", f"--config-file={config}")

    def run_pyright(self):
        settings = {
            "typeCheckingMode": "standard",
            "extraPaths": [str(ROOT)],
            "reportIncompatibleVariableOverride": False,  # Flax modules declare `config` anew
        }
        self.folder.create_file("pyrightconfig.json", json.dumps(settings))
        return self.run_checker("basedpyright", f"--pythonpath={sys.executable}")

    def test_pages(self):
        self.assertIn(f"no issues found in {len(self.pages)} source files", self.run_mypy())
        shown = self.run_pyright()
        self.assertIn("0 errors", shown, shown)

    def test_a_memory_has_the_type_of_its_model(self):
        code = """
import jax

import gradmem_jax as g


def shapes(model: g.GradMem, params: g.Params, ids: jax.Array) -> tuple[int, ...]:
    memory, info = model.write_memory(params, ids, num_steps=ids[:, 0], write_learning_rate=0.5)
    return *memory.shape, *info.losses.shape, *model.read_memory(params, memory, ids).shape


def others(
    full: g.FullContext, projected: g.GradMem[g.ProjectedMemory], params: g.Params, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    projected_memory, _ = g.write_context(projected, params, ids)
    return full.write_memory(params, ids)[0].keys, projected_memory.kernel


g.GradMemConfig(lm=g.LlamaConfig(vocab_size=7, dtype="bfloat16"), gradient_mode="first")
"""
        self.pages = [self.folder.create_file("right.py", code).full_path]
        self.assertIn("no issues", self.run_mypy())
        self.assertIn("0 errors", self.run_pyright())
        wrong = code.replace("memory.shape", "memory.keys").replace('"first"', '"frist"')
        self.pages = [self.folder.create_file("wrong.py", wrong).full_path]
        for shown in (self.run_mypy(), self.run_pyright()):
            self.assertRegex(shown, r"\b2 errors")


if __name__ == "__main__":
    absltest.main()
