"""Exports: written whole or not at all, and opened only if all files are of one."""

import errno
import itertools
import json
import pathlib
import shutil
from unittest import mock

import chex
import numpy as np
from absl.testing import absltest, parameterized

from experiments.program import files
from experiments.run.exported import write_exported
from experiments.run.saved_run import SavedRun
from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer
from tests.experiments.tiny_run import tiny_config
from tests.kills import killed

FILES = pathlib.Path(__file__).parents[2] / "files_of_0_1"
TOKENIZERS = {step: word_tokenizer([text]) for step, text in ((1, "a b"), (2, "a c"))}


def export(folder, step):
    fields = files.to_json(tiny_config(seed=step).to_dict())
    params = {"memory": np.full((2, 2), step, np.float32)}
    write_exported(
        folder, params, step, fields, tokenizer=TOKENIZERS[step], lm={"model_type": f"a{step}"}
    )


def found(folder):
    """The step that each file of an export is of."""
    run = SavedRun(folder)
    step, params = run.params()
    lm = json.loads((folder / "lm" / "config.json").read_text())
    tokenizer = (folder / "tokenizer.json").read_text()
    steps = [s for s, t in TOKENIZERS.items() if t.backend.to_str(pretty=True) == tokenizer]
    return {step, int(params["memory"][0, 0]), run.fields["seed"], int(lm["model_type"][1]), *steps}


class ExportedTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path) / "exported"

    def test_kill(self):
        states, old = set(), self.folder.with_name("old")
        export(old, 1)
        for place in itertools.count(1):
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.copytree(old, self.folder)
            was_killed = killed(self.folder, place, lambda: export(self.folder, 2))
            try:
                steps = found(self.folder)
                self.assertLen(steps, 1)
                states |= steps
            except ValueError as error:
                self.assertRegex(str(error), "exported.json is not a file")
                states.add("none")
            if not was_killed:
                break
        self.assertEqual(states, {1, "none", 2})

    @parameterized.parameters(
        "params.safetensors", "tokenizer.json", "lm/config.json", "config.json", "exported.json"
    )
    def test_a_file_of_another_export(self, name):
        other = self.folder.with_name("other")
        export(self.folder, 1), export(other, 2)
        shutil.copy(other / name, self.folder / name)
        for read in (lambda: SavedRun(self.folder).fields, lambda: SavedRun(self.folder).params()):
            with self.assertRaisesRegex(ValueError, "not the files of the export that exported.js"):
                read()
        if name != "exported.json":
            (self.folder / name).unlink()
            with self.assertRaisesRegex(ValueError, f"{name}.* not the files of the export"):
                _ = SavedRun(self.folder).fields

    @parameterized.parameters([[]], ["a"], [3], [{"config.json": 3}], [{}])
    def test_damaged_lists_of_checksums(self, checksums):
        export(self.folder, 1)
        content = {"step": 1, "dtype": None, "checksums": checksums}
        (self.folder / "exported.json").write_text(json.dumps(content))
        with self.assertRaisesRegex(ValueError, "export the run again"):
            SavedRun(self.folder).params()

    def test_an_export_of_version_0_1(self):
        chex.assert_trees_all_equal(SavedRun(FILES / "exported").params()[0], 4)

    def test_older_files_are_gone(self):
        self.folder.mkdir()
        for name in ("evaluation.json", "evaluation.png", "tokenizer.json"):
            (self.folder / name).write_text("old")
        write_exported(self.folder, {"a": np.ones(1)}, 1, {"data": {}})
        names = {"config.json", "exported.json", "params.safetensors"}
        self.assertEqual({path.name for path in self.folder.iterdir()}, names)

    def test_a_full_disk(self):
        export(self.folder, 1)
        full = OSError(errno.ENOSPC, "No space left on device")
        with (
            mock.patch.object(files, "write_json", side_effect=full),
            self.assertRaisesRegex(ValueError, "exported cannot be written .No space.* make room"),
        ):
            export(self.folder, 2)
        self.assertEqual(found(self.folder), {1})


if __name__ == "__main__":
    absltest.main()
