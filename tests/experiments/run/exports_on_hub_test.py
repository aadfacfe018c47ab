"""An export by its name on a hub is what it is by its path."""

import contextlib
import pathlib
import shutil
import tempfile

import chex
import pytest
from absl.testing import absltest, parameterized

from experiments.answers.open_model import open_model
from experiments.answers.reopen_model import not_beside, reopen_model
from experiments.results.model_card import Export, model_card
from experiments.run.exported import write_exported
from experiments.run.exports_on_hub import find_run
from experiments.run.saved_run import SavedRun
from tests.experiments.tiny_run import random_run, tiny_config
from tests.hub_server import FIRST, SECOND, HubTest, save_model
from tests.programs import ROOT, start


class ExportsOnHubTest(HubTest, parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.made = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        random_run(cls.made / "run", tiny_config())
        run = SavedRun(cls.made / "run")
        step, params = run.params()
        card = model_card(Export("tiny", run, step, params))
        write_exported(cls.made / "out", params, step, run.fields, card=card)

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.enter_context(contextlib.chdir(self.folder))
        self.start_hub(self.folder / "cache")
        self.hub.publish("org/tiny", FIRST, self.made / "out")

    def test_it_opens_as_by_its_path(self):
        here, there = open_model(str(self.made / "out")), open_model("org/tiny")
        chex.assert_trees_all_equal(here.params, there.params)
        self.assertEqual(here.model.config, there.model.config)
        self.assertEqual(there.notes, {"model": f"org/tiny@{FIRST}", "options": {}})
        fetched = self.hub.fetched()
        self.assertEqual(fetched, ["config.json", "exported.json", "params.safetensors"])
        open_model(f"org/tiny@{FIRST}")
        self.assertEmpty(self.hub.fetched())
        with self.assertRaisesRegex(ValueError, "org/tiny is a run, .* leave out --pad_token"):
            open_model("org/tiny", {"pad_token": "x"})
        with self.assertRaisesRegex(ValueError, "checkpoint='latest' is not known|checkpoint="):
            open_model("org/tiny", {"checkpoint_name": "7"})
        memory = str(self.folder / "memory.safetensors")
        self.assertEqual(not_beside(memory, there.notes), {"model": f"org/tiny@{FIRST}"})
        with self.assertRaisesRegex(ValueError, "names a model outside of its folder"):
            reopen_model(memory, there.notes)
        again = reopen_model(memory, there.notes, "org/tiny")
        chex.assert_trees_all_equal(again.params, here.params)

    def test_the_shipped_one_with_its_words(self):
        self.hub.publish("org/babi", SECOND, ROOT / "experiments/models/babi_qa2")
        words = open_model("org/babi").tokenizer
        self.assertEqual(words.decode(words.encode("Where is Mary ?")), "Where is Mary ?")
        self.assertNotIn("README.md", self.hub.fetched())

    def test_what_is_missing_or_another(self):
        save_model(self.folder / "lm")
        self.hub.publish("org/lm", SECOND, self.folder / "lm")
        self.assertIsNone(find_run("org/lm"))
        self.assertIsNone(find_run("lm"))
        shutil.copytree(self.made / "out", "cut")
        (self.folder / "cut" / "params.safetensors").unlink()
        self.hub.publish("org/cut", SECOND, self.folder / "cut")
        with self.assertRaisesRegex(ValueError, "params.safetensors"):
            open_model("org/cut")

    def test_a_card_names_the_base_with_its_licence(self):
        save_model(self.folder / "lm")
        (self.folder / "lm" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        self.hub.publish("org/lm", SECOND, self.folder / "lm")
        run = SavedRun(self.made / "run")
        step, params = run.params()
        _ = run.plan
        run.fields["pretrained"] = f"org/lm@{SECOND}"
        card = model_card(Export("tiny", run, step, params))
        self.assertIn("\nlicense: apache-2.0\n", card)
        self.assertIn("\nbase_model: org/lm\n", card)
        self.assertIn("Of the weights: apache-2.0, as that of their base.", card)

    def test_evaluate_needs_a_place_for_results(self):
        done = start("evaluate", "--workdir=org/tiny", devices=1)
        self.assertRegex(done.stderr, "^error: --workdir=org/tiny is on a hub: say with --out")

    @pytest.mark.slow
    def test_evaluate_writes_where_it_is_told(self):
        arguments = ("--workdir=org/tiny", "--num_write_steps=1", "--num_samples=8")
        done = start("evaluate", *arguments, f"--out={self.folder / 'found'}", devices=1)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"org/tiny@{FIRST}", (self.folder / "found.json").read_text())


if __name__ == "__main__":
    absltest.main()
