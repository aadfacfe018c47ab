"""The notebooks of docs/tutorials: they run, and what git keeps of them is small."""

import importlib.util
import json
import os
import pathlib
import re

import pytest
from absl.testing import absltest, parameterized

from tests.programs import environment
from tests.shared_data import data_dir

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs/tutorials"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
MOST_BYTES, MOST_CELLS = 150_000, 24
# What the cell behind that of the parameters says, so that the way through takes seconds.
SHORT = {
    "1_gradmem_from_nothing.ipynb": "NUM_STEPS, AT_LEAST = 3, 0",
    "2_train_kv_retrieval.ipynb": "NUM_STEPS, AT_LEAST = 3, 0",
    "3_your_pretrained_model.ipynb": "NUM_STEPS, AT_LEAST = 6, 0",
    "4_your_task_and_memory.ipynb": "NUM_STEPS, AT_LEAST = 3, 0",
    "5_from_one_cpu_to_many_chips.ipynb": (
        "LAYOUTS = {'1 device': (1, 1, 1), 'all': (2, 2, 2)}\nTOPOLOGIES = ''"
    ),
}
PATHS = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|usr|opt)/")


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def is_parameters(cell):
    return "parameters" in cell["metadata"].get("tags", ())


class StoredTest(parameterized.TestCase):
    def test_index_names_every_notebook(self):
        named = re.findall(r"\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text())
        self.assertCountEqual(named, NOTEBOOKS)
        self.assertCountEqual(SHORT, NOTEBOOKS)

    @parameterized.parameters(*NOTEBOOKS)
    def test_it_is_small_whole_and_clean(self, name):
        notebook = read(name)
        self.assertLessEqual((FOLDER / name).stat().st_size, MOST_BYTES)
        self.assertLessEqual(len(notebook["cells"]), MOST_CELLS)
        first, *_ = cells = code_cells(notebook)
        self.assertIn("%pip install", "".join(first["source"]))
        self.assertLen([cell for cell in cells if is_parameters(cell)], 1)
        self.assertEqual([cell["execution_count"] for cell in cells], [*range(1, len(cells) + 1)])
        for cell in notebook["cells"]:
            self.assertNotIn("execution", cell["metadata"])
            self.assertNotRegex("".join(cell["source"]), PATHS)
            for output in cell.get("outputs", ()):
                self.assertNotEqual(output["output_type"], "error")
                self.assertNotEqual(output.get("name"), "stderr")
                data = output.get("data", {})
                self.assertEmpty([kind for kind in data if "widget" in kind])
                texts = [text for kind, text in data.items() if kind != "image/png"]
                self.assertNotRegex(json.dumps([output.get("text"), texts]), PATHS)

    @parameterized.parameters(*NOTEBOOKS)
    def test_links_lead_to_files(self, name):
        text = "".join("".join(cell["source"]) for cell in read(name)["cells"])
        for target in re.findall(r"\]\((?!http)([^)#]*)", text):
            self.assertTrue((FOLDER / target).exists(), target)


class RunTest(parameterized.TestCase):
    def run_notebook(self, name, short):
        """Runs a notebook in an empty folder; raises what a cell raises."""
        missing = [x for x in ("ipykernel", "nbclient") if importlib.util.find_spec(x) is None]
        if missing:
            self.skipTest(f"no {missing}; pip install -e '.[tutorials]' brings them")
        import nbclient
        import nbformat

        extra = {"PYTHONPATH": os.fspath(ROOT)}
        if name.startswith("3_"):
            extra["TUTORIAL_MODEL"] = os.fspath(data_dir() / "stories260K/stories260K.bin")
        notebook = nbformat.read(FOLDER / name, as_version=4)
        if short:
            (place,) = (i for i, cell in enumerate(notebook.cells) if is_parameters(cell))
            notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SHORT[name]))
        folder = self.create_tempdir().full_path
        client = nbclient.NotebookClient(
            notebook, timeout=1200, resources={"metadata": {"path": folder}}
        )
        client.execute(env=environment(devices=None) | extra)
        return notebook

    @pytest.mark.slow_cases("2_train_kv_retrieval")
    @parameterized.named_parameters(*((name.partition(".")[0], name) for name in NOTEBOOKS))
    def test_it_runs(self, name):
        notebook = self.run_notebook(name, short=True)
        self.assertNotEmpty([c for c in code_cells(notebook) if c["outputs"]])

    @parameterized.parameters(*NOTEBOOKS)
    @pytest.mark.slow
    def test_it_reaches_what_it_says(self, name):
        self.run_notebook(name, short=False)


if __name__ == "__main__":
    absltest.main()
