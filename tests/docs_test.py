"""README and docs: the code runs, the commands have flags and fields that exist, links lead on."""

import importlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import gradmem_jax.lm
from docs import figures
from experiments.configs import default
from experiments.run import log_to
from experiments.run.build import build
from experiments.run.build_model import build_model, build_task
from experiments.run.scalar_writer import RunToWrite
from experiments.sweeps.sweep_file import select
from gradmem_jax.data.squad import SquadConfig
from gradmem_jax.data.tasks import TASKS
from gradmem_jax.methods import METHODS
from tests.programs import start

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = {  # and their source
    path.stem: text
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "startup.run(main" in (text := path.read_text())
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = ("attic", "garden", "kitchen", "office", "park")
STORIES = [
    f"1 {who} went to the {place}.\n2 Where is {who}? \t{place}\t1\n"
    for who in ("Ann", "Mary", "John")
    for place in PLACES
]


def code_blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def pages_with(language: str) -> list[str]:
    return [page.name for page in PAGES if code_blocks(page, language)]


def page_named(name: str) -> pathlib.Path:
    return next(page for page in PAGES if page.name == name)


def commands(program: str) -> list[list[str]]:
    """Arguments of every call of a program in README and docs."""
    found = []
    for page in PAGES:
        for block in code_blocks(page, "(?:ba)?sh"):
            calls = rf"-m experiments\.{program}\b((?:\"[^\"\n]*\"|'[^'\n]*'|[^\"'&;|\n])*)"
            words = re.findall(calls, block.replace("\\\n", " "))
            found += [shlex.split(arguments, comments=True) for arguments in words]
    return found


def prose(page: pathlib.Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def anchors(page: pathlib.Path) -> set[str]:
    """What links to the headings of a page end with, as GitHub makes it of them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in headings}


def make_data() -> None:
    """Tiny files in the places where pages look for data sets."""
    for folder in ("data/squad", "data/babi/en-10k"):
        os.makedirs(folder)
    for part in ("train", "test"):
        pathlib.Path(f"data/babi/en-10k/qa1_x_{part}.txt").write_text("".join(STORIES))
    for name in ("train", "dev"):
        articles = []
        for i in range(10):
            context = f"Thing {i} is red. It is here."
            answers = [{"text": "red", "answer_start": context.find("red")}]
            question = {"id": f"{name}{i}", "question": f"What is thing {i}?", "answers": answers}
            paragraph = {"context": context, "qas": [question]}
            articles.append({"title": f"{name} {i}", "paragraphs": [paragraph]})
        text = json.dumps({"version": "1.1", "data": articles})
        pathlib.Path(f"data/squad/{name}-v1.1.json").write_text(text)


class DocsTest(parameterized.TestCase):
    def run_page(self, name):
        """Runs the Python blocks of a page in their order, in an empty folder with tiny data."""
        names = {}
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(self.create_tempdir().full_path)
        os.symlink(ROOT / "experiments", "experiments")
        make_data()
        for block in code_blocks(page_named(name), "python"):
            exec(compile(block, name, "exec"), names)
        return names

    def test_every_page_with_python_code_is_run(self):
        run = {name.removeprefix("test_python_code_of_") for name in dir(self)}
        self.assertContainsSubset(
            {name.split(".")[0].lower() for name in pages_with("python")}, run
        )

    def test_python_code_of_readme(self):
        names = self.run_page("README.md")
        self.assertEqual(names["memory"].shape, (4, 8, 64))
        self.assertEqual(names["logits"].shape, (4, 7, 256))
        self.assertTrue(np.isfinite(names["loss"]))
        self.assertTrue(np.isfinite(names["gradient"]["initial_memory"]).all())
        self.assertNotEmpty(np.flatnonzero(names["gradient"]["initial_memory"]))

    def test_python_code_of_library(self):
        names = self.run_page("library.md")
        self.assertEqual(names["memory"].shape, (4, 8, 128))
        self.assertEqual(names["answers"].shape, (4, 3, 5))
        np.testing.assert_array_equal(names["again"], names["answers"])
        self.assertEqual(names["shown"].ids.shape, (4, 50))
        self.assertEqual(names["some"].shape, (2, 8, 128))
        self.assertEqual(names["state_logits"].shape, (4, 3, 7, 256))
        self.assertEqual(names["place"], "office")
        self.assertLess(
            sum(os.path.getsize(f"{name}.jax") for name in ("write", "read")),
            os.path.getsize("flat_params.npz"),
        )
        (alone,) = (x for x in code_blocks(page_named("library.md"), "python") if "deserial" in x)
        check = "import sys; assert 'gradmem_jax' not in sys.modules and type(story_info) is dict"
        save = "np.savez('alone.npz', memory=story_memory, logits=story_logits)"
        subprocess.run([sys.executable, "-c", "\n".join((alone, check, save))], check=True)
        stories, model, params = (names[name] for name in ("stories", "model", "params"))
        memory, _ = model.write_memory(params, stories)
        logits = model.read_memory(params, memory, stories[:, :5])
        with np.load("alone.npz") as made_alone:
            np.testing.assert_allclose(made_alone["memory"], memory, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(made_alone["logits"], logits, rtol=1e-3, atol=1e-3)
        for name, value in names["made"].items():
            np.testing.assert_array_equal(names["stored"][name], value)

    def test_python_code_of_data(self):
        self.addCleanup(TASKS.pop, "notes", None)
        names = self.run_page("data.md")
        pathlib.Path("notes").mkdir()
        for split in ("train", "validation", "test"):
            pathlib.Path("notes", f"{split}.tsv").write_text("Tea is hot .\tTea is\thot\n")
        config = default.get_config(task="notes")
        config.data.data_dir = "notes"
        task = build_task(config)
        self.assertEqual(task.source("train").record(0).answers, ("hot",))
        self.assertEqual(task.context_buckets, (8,))
        self.assertLen(names["babi"].source("train"), len(names["source"]))
        raw = SquadConfig(context="sentence", data_dir=os.path.abspath("data/squad"))
        self.assertEqual(names["prepared"].records("test"), raw.records("test"))
        self.assertLen(names["batch"]["context_ids"], 8)

    def test_python_code_of_devices(self):
        names = self.run_page("devices.md")
        self.assertEqual(dict(names["mesh"].shape), {"data": 1, "fsdp": 4, "tensor": 2})
        self.assertFalse(names["state"].params["lm"]["embedding"].is_fully_replicated)
        self.assertTrue(callable(names["step"]))
        self.assertEqual(names["memory"].sharding.spec[0], "data")
        self.assertAlmostEqual(names["gib"], 2.09, 2)
        self.assertAlmostEqual(names["projected"]["efficiency_nothing_hidden"], 0.96, 2)

    def test_python_code_of_accelerators(self):
        names = self.run_page("accelerators.md")
        self.assertEqual(names["hessian_product"].shape, (2, 40, 8, 16))
        self.assertTrue(np.isfinite(names["hessian_product"]).all())

    def test_python_code_of_training(self):
        self.addCleanup(log_to.WRITERS.pop, "lines", None)
        self.run_page("training.md")
        writer = log_to.open_writers(("lines",), RunToWrite(pathlib.Path.cwd(), {}, first_step=0))
        writer.write(2, {"train/loss": 0.5})
        writer.close()
        self.assertEqual(pathlib.Path("scalars.txt").read_text(), "2 {'train/loss': 0.5}\n")

    def test_python_code_of_own_models(self):
        self.addCleanup(METHODS.pop, "gradmem_window", None)
        names = self.run_page("own_models.md")
        self.assertEqual(names["memory"].shape, (4, 2, 16))
        self.assertEqual(names["answers"].shape, (4, 5))
        self.assertEqual(names["plain_answers"].shape, (4, 2, 5))
        config = names["get_config"]()
        model = build_model(config, build_task(config))
        self.assertIsInstance(model.lm, names["WindowLM"])
        self.assertEqual(model.config.lm.window, 32)
        whole = names["WholeMemoryConfig"](vocab_size=11)
        self.assertIsInstance(gradmem_jax.lm.make_lm(whole), names["WholeMemoryLM"])

    def test_own_models_names_every_building_block(self):
        table = page_named("own_models.md").read_text().split("## Building blocks")[1]
        rows = re.findall(r"^\| (`.*?) \|", table.split("##")[0], re.M)
        named = re.findall(r"`(\w+)`", " ".join(rows))
        self.assertCountEqual(named, gradmem_jax.lm.__all__)

    @pytest.mark.slow
    def test_figure_is_drawn(self):
        words, written = figures.write_and_ask()
        self.assertEqual("".join(words), figures.STORY.replace(" ", ""))
        losses = [one.losses.mean() for one in written]
        self.assertEqual(losses, sorted(losses, reverse=True))
        self.assertNotEqual(written[0].answer, figures.RIGHT_ANSWER)
        self.assertEqual(written[-1].answer, figures.RIGHT_ANSWER)
        path = pathlib.Path(self.create_tempdir().full_path) / "figure.png"
        with mock.patch.object(figures, "write_and_ask", lambda: (words, written)):
            figures.draw(path)
        self.assertGreater(path.stat().st_size, 50_000)

    def test_training_commands_configure_what_exists(self):
        self.assertNotEmpty(commands("train"))
        for words in commands("train"):
            options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
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
                if name.startswith("config."):
                    group = fields
                    for part in name.removeprefix("config.").split("."):
                        self.assertIn(part, group, f"{name} in {words}")
                        group = group[part]
            if "data_dir" not in fields.data:  # else it needs files that no clone has
                build(config)

    @parameterized.parameters(*PROGRAMS)
    def test_help_explains_every_flag(self, program):
        done, source = start(program, "--help"), PROGRAMS[program]
        text = done.stdout
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLessEqual(text.count("\n"), 48)  # one screen
        self.assertLessEqual(max(map(len, text.splitlines())), 80)
        self.assertIn(" ".join(text.split(".")[0].split()), source)
        for module in re.findall(r"adopt_module_key_flags\((\w+)\)", source):
            source += next((ROOT / "experiments").rglob(f"{module}.py")).read_text()
        known = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source)
        used = [word for words in commands(program) for word in words if word.startswith("--")]
        for name in known + [re.match(r"--(\w+)", word)[1] for word in used]:
            self.assertRegex(text, rf"--(\[no\])?{name}\b")

    def test_sweep_commands_have_runs(self):
        folders = ("GRADMEM_DATA_DIR", "GRADMEM_STORIES", "GRADMEM_SPANS", "GRADMEM_SMOLLM2")
        found = dict.fromkeys((*folders, "GRADMEM_WIKITEXT"), "somewhere")
        self.assertNotEmpty(commands("sweep"))
        for words in commands("sweep"):
            options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
            with mock.patch.dict(os.environ, found):
                runs = importlib.import_module(
                    options["sweep"].removesuffix(".py").replace("/", ".")
                ).get_runs()
            index, count = int(options.get("index", 0)), int(options.get("count", 1))
            self.assertNotEmpty(select(runs, index, count, options.get("only", "")))

    def test_commands_are_of_programs(self):
        text = "".join(page.read_text() for page in PAGES)
        self.assertEmpty(set(re.findall(r"-m experiments\.([a-z_]+)", text)) - PROGRAMS.keys())

    def test_links_lead_to_files(self):
        for page in PAGES:
            links = re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", prose(page))
            for target, anchor in links:
                path = page.parent / target if target else page
                self.assertTrue(path.exists(), f"{target} in {page}")
                if anchor:
                    self.assertIn(anchor, anchors(path), f"{target}#{anchor} in {page}")

    def test_files_that_are_named_exist(self):
        for page in PAGES:
            for name in re.findall(
                r"`((?:gradmem_jax|experiments|tests|docs)/[\w/]+(?:\.py|/))[`:]", page.read_text()
            ):
                self.assertTrue((ROOT / name).exists(), f"{name} in {page}")


if __name__ == "__main__":
    absltest.main()
