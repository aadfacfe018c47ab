"""The folder of a run: what is one, and that nobody takes it for a language model."""

import json
import pathlib

from absl.testing import absltest

from experiments.configs import kv_quick
from experiments.run.build import build
from experiments.run.workdir import is_run
from tests.programs import ROOT, start


class RunFolderTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def test_runs_exported_runs_and_language_models(self):
        for name, text, expected in (
            ("begun", json.dumps({"model": {}, "data": {}, "num_steps": 8}), True),
            ("gpt2", '{"model_type": "gpt2"}', False),
            ("list", "[]", False),
            ("damaged", "{", False),
        ):
            (self.folder / name).mkdir()
            self.assertFalse(is_run(self.folder / name))
            (self.folder / name / "config.json").write_text(text)
            self.assertEqual(is_run(self.folder / name), expected, name)
        (self.folder / "trained" / "checkpoints").mkdir(parents=True)
        self.assertTrue(is_run(str(self.folder / "trained")))
        self.assertTrue(is_run(ROOT / "experiments/models/babi_qa2"))
        self.assertFalse(is_run(ROOT / "tests/golden/lm_llama"))
        self.assertFalse(is_run(self.folder / "nowhere"))

    def test_a_run_is_no_language_model(self):
        (self.folder / "checkpoints").mkdir()
        config = kv_quick.get_config()
        config.pretrained = str(self.folder)
        with self.assertRaisesRegex(ValueError, "is a run, .* start from it with init_from="):
            build(config)
        done = start("sample", f"--model={self.folder}", f"--out={self.folder / 'out.txt'}")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "^error: --model=.* is a run; name the files of a pretrained")


if __name__ == "__main__":
    absltest.main()
