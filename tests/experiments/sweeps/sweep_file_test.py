"""Files of sweeps: what is refused, and how workers share the runs."""

import os
import textwrap
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.sweeps import sweep_file
from experiments.sweeps.run_list import Run, chain, seeds
from tests.programs import ROOT
from tests.shared_data import data_dir

SWEEPS = sorted(
    path.name
    for path in (ROOT / "experiments/sweeps").glob("*.py")
    if "\ndef get_runs()" in path.read_text()
)
CONFIG = str(ROOT / "experiments/configs/kv_quick.py")


def names(runs):
    return [run.name for run in runs]


class SweepFileTest(parameterized.TestCase):
    @parameterized.parameters(1, 2, 3, 7)
    def test_workers_share_all_runs_and_keep_chains_whole(self, count):
        runs = seeds(chain([Run("a", "c"), Run("b", "c"), Run("c", "c")]), range(3))
        runs += [Run("d", "c"), Run("e", "c", after="b_seed1")]
        parts = [names(sweep_file.select(runs, i, count)) for i in range(count)]
        self.assertCountEqual(sum(parts, []), names(runs))
        for part in parts:
            for run in runs:
                if run.after and run.name in part:
                    self.assertLess(part.index(run.after), part.index(run.name))
        if count == 3:
            self.assertEqual([len(part) for part in parts], [4, 4, 3])

    def test_only(self):
        runs = seeds(chain([Run("a", "c"), Run("b", "c")]), range(4))
        parts = [names(sweep_file.select(runs, i, 2, only="^b_seed[123]")) for i in range(2)]
        self.assertEqual(parts, [["b_seed1", "b_seed3"], ["b_seed2"]])

    def sweep_file(self, text):
        return self.create_tempfile("sweep_file.py", textwrap.dedent(text)).full_path

    @parameterized.parameters(
        ("", r"has no get_runs\(\)"),
        ("def get_runs(): return []", "at least one"),
        ("def get_runs(): return ['a']", "list of at least one experiments.sweeps.run_list.Run"),
        ("def get_runs(): return [Run('a', C), Run('a', C)]", "two runs are named 'a'"),
        ("def get_runs(): return [Run('../a', C)]", "run name '../a' is not a folder"),
        ("def get_runs(): return [Run('a', C, after='b')]", "'a' comes after 'b'"),
        ("def get_runs(): return [Run('a', C, after='a')]", "'a' comes after 'a'"),
        (
            "def get_runs(): return [Run('a', C, after='b'), Run('b', C)]",
            "'a' comes after 'b', which is no run listed before it",
        ),
        ("def get_runs(): return [Run('a', 'nowhere.py')]", "config 'nowhere.py' is not a file"),
        ("def get_runs(): return [Run('a', C + ':lstm')]", "run 'a' cannot be configured"),
        ("def get_runs(): return [Run('a', C, {'sede': 1})]", "'a' cannot be .*sede"),
        ("def get_runs(): return [Run('a', C, {'seed': 'x'})]", "'a' cannot be .*seed"),
        ("def get_runs(): return [Run('a', C, {'lm.width': 9})]", "'a' cannot be .*width=9"),
        ("def get_runs(): return [Run('a', C, {'seed': None})]", r"'a' sets \['seed'\] to None"),
    )
    def test_refused_sweep_files(self, text, message):
        path = self.sweep_file(
            f"from experiments.sweeps.run_list import Run\nC = {CONFIG!r}\n{text}\n"
        )
        with self.assertRaisesRegex(ValueError, message):
            sweep_file.load_runs(path)

    def test_missing_sweep_file(self):
        with self.assertRaisesRegex(ValueError, "sweep 'nowhere.py' is not a file"):
            sweep_file.load_runs("nowhere.py")

    @parameterized.parameters(
        (2, 2, "", "--index=2 must be from 0 to 1"),
        (-1, 2, "", "--index=-1"),
        (0, 1, "(", r"--only='\(' is not a regular expression"),
        (0, 1, "gru", "--only='gru' is in the name of no run; names look like 'a'"),
    )
    def test_refused_selections(self, index, count, only, message):
        with self.assertRaisesRegex(ValueError, message):
            sweep_file.select([Run("a", "c"), Run("b", "c")], index, count, only)

    @parameterized.parameters(*SWEEPS)
    def test_every_sweep_can_be_configured(self, name):
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(ROOT)
        environment = {}
        if not name.startswith("kv_"):
            spans = self.create_tempfile(content="once upon a time " * 100).full_path
            environment = {"GRADMEM_DATA_DIR": str(data_dir()), "GRADMEM_SPANS": spans}
            stories = data_dir() / "stories260K"
            environment |= {"GRADMEM_STORIES": str(stories), "GRADMEM_WIKITEXT": spans}
            environment["GRADMEM_SMOLLM2"] = str(stories / "stories260K.bin")  # any model does
        with mock.patch.dict(os.environ, environment):
            self.assertNotEmpty(sweep_file.load_runs(f"experiments/sweeps/{name}"))


if __name__ == "__main__":
    absltest.main()
