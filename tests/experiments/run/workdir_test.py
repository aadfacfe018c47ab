"""The folder of a run: what is one, and that nobody takes it for a language model."""

import json
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.configs import default, kv_quick
from experiments.program import files
from experiments.run import workdir
from experiments.run.build import build
from experiments.run.workdir import is_run
from tests.experiments.tiny_run import tiny_config, tiny_plan
from tests.programs import ROOT, start


class RunFolderTest(parameterized.TestCase):
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

    def test_workdir_of_another_run_is_refused(self):
        (self.folder / "run").mkdir()
        workdir.check_workdir(self.folder / "run", tiny_plan(**{"lm.width": 16}))
        workdir.check_workdir(self.folder / "run", tiny_plan())  # nothing was trained before
        (self.folder / "run" / "checkpoints" / "4").mkdir(parents=True)
        others = {"num_steps": 80, "mesh.fsdp": 2, "init_checkpoint": "latest", "init_from": "x"}
        others |= {"num_micro_batches": 4, "cpu_devices": 1}
        workdir.check_workdir(self.folder / "run", tiny_plan(**others))
        with self.assertRaisesRegex(ValueError, r"other values of \['lm.width'\]"):
            workdir.check_workdir(self.folder / "run", tiny_plan(**{"lm.width": 16}))
        with self.assertRaisesRegex(ValueError, "num_steps=3 is less than the 4 steps that"):
            workdir.check_workdir(self.folder / "run", tiny_plan(num_steps=3))
        cosine = {"optimizer.schedule": "cosine"}
        fields = json.loads((self.folder / "run" / "config.json").read_text())
        fields["optimizer"]["schedule"] = "cosine"
        (self.folder / "run" / "config.json").write_text(json.dumps(fields | {"num_steps": 4}))
        with self.assertLogs("experiments", "WARNING") as logs:
            workdir.check_workdir(self.folder / "run", tiny_plan(num_steps=8, **cosine))
        self.assertRegex(logs.output[0], "num_steps was 4 and is 8: .* at 0.0075, where .* to 0. ")

    def test_a_run_from_before_a_field_was_there_goes_on_with_its_default(self):
        path = self.folder / "run" / "config.json"
        (path.parent / "checkpoints" / "4").mkdir(parents=True)
        earlier = files.to_json(tiny_config().to_dict())
        del earlier["optimizer"]["name"]
        path.write_text(json.dumps(earlier))
        muon = tiny_plan(**{"optimizer.name": "muon"})
        with self.assertRaisesRegex(ValueError, r"other values of \['optimizer.name'\]"):
            workdir.check_workdir(self.folder / "run", muon)
        workdir.check_workdir(self.folder / "run", tiny_plan())
        self.assertEqual(json.loads(path.read_text())["optimizer"]["name"], "adamw")

    @parameterized.parameters(None, True, False)
    def test_a_run_of_before_there_was_a_token_at_the_beginning(self, said):
        typed = default.get_config("gradmem", "babi", pretrained=True).lock()
        path = self.folder / "run" / "config.json"
        self.assertIs(workdir.as_begun(typed, path.parent), typed)
        (path.parent / "checkpoints" / "4").mkdir(parents=True)
        earlier = files.to_json(typed.to_dict())
        del earlier["data"]["add_begin_token"]
        earlier["data"] |= {} if said is None else {"add_begin_token": said}
        path.write_text(json.dumps(earlier))

        def go_on(config):
            plan = mock.Mock(method="gradmem", task_name="babi", num_steps=config.num_steps)
            plan.fields = files.to_json(config.to_dict())
            workdir.check_workdir(path.parent, plan)

        if said is False:  # somebody chose it
            with self.assertRaisesRegex(ValueError, "other values of .'data.add_begin_token'"):
                go_on(workdir.as_begun(typed, path.parent))
            return
        for _ in range(2):
            logs = self.assertNoLogs if said else self.assertLogs
            with logs("experiments", "INFO") as logged:
                config = workdir.as_begun(typed, path.parent)
            self.assertIs(config.data.add_begin_token, bool(said))
            go_on(config)
            self.assertEqual(json.loads(path.read_text()), earlier)
        self.assertTrue(typed.data.add_begin_token)
        if not said:
            self.assertEndsWith(logged.output[0], "it goes on with data.add_begin_token=False")

    def test_a_run_of_before_there_was_a_precision(self):
        path = self.folder / "run" / "config.json"
        (path.parent / "checkpoints" / "4").mkdir(parents=True)
        earlier = files.to_json(tiny_config().to_dict())
        del earlier["lm"]["matmul_precision"]
        path.write_text(json.dumps(earlier))
        with self.assertLogs("experiments", "INFO") as logged:
            plan = build(workdir.as_begun(tiny_config().lock(), path.parent))
        self.assertEndsWith(logged.output[0], "it goes on with lm.matmul_precision=default")
        self.assertEqual(plan.target.model.config.lm.matmul_precision, "default")
        workdir.check_workdir(path.parent, plan)
        self.assertNotIn("matmul_precision", path.read_text())


if __name__ == "__main__":
    absltest.main()
