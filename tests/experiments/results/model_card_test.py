"""Model cards: what they say is in the files of the run, exactly, and cannot be forged there."""

import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from experiments.results.card_texts import CITATION
from experiments.results.front_matter import check_license, license_of
from experiments.results.model_card import Export, model_card
from experiments.run.evaluation import confidence_interval
from experiments.run.saved_run import SavedRun
from tests.experiments.tiny_run import random_run, tiny_config
from tests.programs import ROOT

SHIPPED = ROOT / "experiments/models/babi_qa2"
RATES = {"0": 1 / 3, "1": 0.9470000000000001}


def metrics(**changes):
    rows = {
        k: {
            "exact_match": rate,
            "confidence_interval": confidence_interval(rate, 1000),
            "num_samples": 1000,
        }
        for k, rate in RATES.items()
    }
    found = {"best_step": 1, "best_metric": "exact_match", "by_num_write_steps": rows}
    found |= {"steps": 8, "seconds": 90.0, "devices": ["8 cpu"], "exact_match": RATES["1"]}
    return found | changes


class ModelCardTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory())) / "run"
        random_run(cls.run_folder, tiny_config())

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def card(self, name="tiny", pretrained="", found=None, step=1, **changes):
        workdir = self.run_folder
        (workdir / "metrics.json").unlink(missing_ok=True)
        if found is not None:
            (workdir / "metrics.json").write_text(json.dumps(found))
        run = SavedRun(workdir)
        _, params = run.params()
        _ = run.plan
        run.fields["pretrained"] = pretrained
        return model_card(Export(name, run, step, params, **changes))

    def test_the_shipped_model(self):
        run = SavedRun(SHIPPED)
        step, params = run.params()
        dtype = json.loads((SHIPPED / "exported.json").read_text())["dtype"]
        card = model_card(Export("babi_qa2", run, step, params, dtype))
        self.assertEqual((SHIPPED / "README.md").read_text(), card)
        self.assertIn("2,048 floats, 8,192 bytes", card)
        self.assertIn("Not known: the files that this was made of have no results", card)
        self.assertNotIn("license:", card)

    def test_numbers_are_those_of_the_run(self):
        try:
            from huggingface_hub import ModelCard
        except ImportError:
            self.skipTest("huggingface_hub is not installed")
        name = "tiny: #1 \x1b[2J\\n'\"é"
        card = self.card(name, found=metrics(), license="cc-by-4.0")
        self.assertTrue(card.replace("\n", "").isprintable())
        data = ModelCard(card, ignore_metadata_errors=False).data
        self.assertEqual((data.library_name, data.license), ("gradmem_jax", "cc-by-4.0"))
        self.assertEqual(data.tags[-2:], ["gradmem", "kv_retrieval"])
        self.assertIsNone(data.base_model)
        self.assertEqual(data.model_name, name)
        found = [(x.metric_type, x.metric_name, x.metric_value) for x in data.eval_results]
        want = [("exact_match", f"exact match, K = {k}", rate) for k, rate in RATES.items()]
        self.assertEqual(found, want)
        self.assertIn("| 1, as trained | 94.7 | 93.1 to 95.9 | 1,000 |", card)
        self.assertIn("Training took 8 steps in 1.5 minutes on 8 cpu;", card)

    def test_results_of_another_step_or_none(self):
        for found, step in ((metrics(), 2), (None, 1)):
            card = self.card(found=found, step=step)
            self.assertIn(f"no results of step {step}", card)
            self.assertNotIn("model-index", card)
            self.assertIn("None was chosen for the weights", card)

    @parameterized.parameters(
        {"best_metric": "luck"},
        {"by_num_write_steps": {}},
        {"by_num_write_steps": {"1": {"exact_match": 2.0}}},
        {"by_num_write_steps": {"1": {"exact_match": 0.5, "num_samples": 9}}},
        {"devices": [3]},
    )
    def test_damaged_results(self, **changes):
        with self.assertRaisesRegex(ValueError, r"metrics.json is damaged .*move the file away.$"):
            self.card(found=metrics(**changes))

    @parameterized.parameters(
        ("---\nlicense: apache-2.0\n---\n# Base", "apache-2.0"),
        ("---\ntags:\n- a\nlicense: 'mit'  # so\n---\n", "mit"),
        ("# Base\n---\nlicense: mit\n---\n", None),
        ("---\ntags: a\n---\nlicense: mit\n", None),
        ("---\nlicense: [a]\n---\n", None),
        ("", None),
    )
    def test_the_licence_of_the_base(self, text, want):
        base = self.folder / "base"
        base.mkdir()
        (base / "README.md").write_text(text)
        self.assertEqual(license_of(base / "README.md"), want)
        card = self.card(pretrained=str(base))
        self.assertEqual("\nlicense: " in card, want is not None)
        self.assertIn(f"is {want or 'not recorded here'}.", card)
        self.assertNotIn(str(self.folder), card)
        card = self.card(pretrained=str(base), license="other")
        self.assertIn("Of the weights: other.", card)

    def test_licences_and_citation(self):
        for name in ("", "MIT", "a b", "x\n", "-mit"):
            with self.assertRaisesRegex(ValueError, "^--license=.* is no identifier such as"):
                check_license(name)
        cited = (ROOT / "docs" / "CITATION.cff").read_text()
        for text in ("Learning to Write Context into Memory", "arXiv:2603.13875", "Kuratov"):
            self.assertIn(text, CITATION)
            self.assertIn(text, cited)


if __name__ == "__main__":
    absltest.main()
