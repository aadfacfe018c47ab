"""Runs on disk: their plan, also of runs from before a field was there, and what is refused."""

import json
import pathlib
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments.configs import default
from experiments.program import files
from experiments.run import stored_sizes
from experiments.run.build import build
from experiments.run.saved_run import SavedRun, check_paths
from gradmem_jax.data.text_spans import TextSpansConfig
from gradmem_jax.storage.params_file import save_params
from tests.experiments.tiny_run import random_run, tiny_config


def _zeros(shape):
    return np.zeros(shape.shape, shape.dtype)


class SavedRunTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def open(self, fields):
        """A run with some configuration and zeros for parameters, those of `tiny_config`."""
        files.write_json(self.folder / "config.json", fields)
        shapes = jax.eval_shape(build(tiny_config()).target.model.init, jax.random.key(0))
        save_params(self.folder / "params.safetensors", jax.tree.map(_zeros, shapes))
        return SavedRun(self.folder)

    def test_a_named_checkpoint_beside_a_damaged_one(self):
        random_run(self.folder / "run", tiny_config(), scores=(0.5, 0.7))
        (self.folder / "run" / "checkpoints" / "2" / "state" / "_METADATA").unlink()
        run = SavedRun(self.folder / "run")
        self.assertEqual(run.plan.num_steps, 8)
        step, params = run.params("1")
        self.assertEqual(step, 1)
        run.plan.target.model.check_params(params)
        with self.assertRaisesRegex(ValueError, r"step 2, cannot be read.*steps \[1\]; name one"):
            run.params("latest")

    def test_characters_of_a_text_are_no_length_of_contexts(self):
        stored_sizes.check_task(TextSpansConfig(data_dir="texts", max_characters=10_000_000))

    def test_the_plan_is_that_of_the_configuration(self):
        config = tiny_config(
            **{
                "frozen": ("^lm/",),
                "curriculum.num_pairs": (1, 2),
                "write_optimizer.name": "sgd",
                "write_optimizer.arguments": {"learning_rate": 0.1},
            }
        )
        plan, saved = build(config), self.open(config.to_dict()).plan
        self.assertEqual(saved.fields, plan.fields)
        self.assertEqual(saved.frozen, ("^lm/",))
        self.assertEqual(saved.optimizer, plan.optimizer)
        self.assertEqual(saved.target.model.config, plan.target.model.config)
        self.assertEqual([s.task for s in saved.stages], [s.task for s in plan.stages])

    def test_a_run_of_another_version_of_the_code(self):
        fields = files.to_json(tiny_config(final_split="test").to_dict())
        for name in ("cpu_devices", "best_metric", "mesh", "skip_nonfinite"):
            del fields[name]
        del fields["curriculum"]["max_context_tokens"]
        del fields["optimizer"]["name"]
        fields["optimizer"]["momentum"] = 0.5
        fields["a_field_that_is_gone"] = 3
        plan = self.open(fields).plan
        self.assertEqual(plan.best_metric, "exact_match")
        self.assertEqual(plan.optimizer.name, "adamw")
        self.assertEqual(plan.final_split, "test")
        with self.assertRaisesRegex(ValueError, "not the configuration of a run: mesh missing or"):
            _ = self.open(fields | {"mesh": 3}).plan

    @parameterized.parameters(
        ({"lm.width": 10**9}, "lm.width=1000000000 does not fit the stored .* have 1448 "),
        ({"lm.num_layers": 10**9}, "lm.num_layers=1000000000 does not fit"),
        ({"lm.num_layers": 2}, "lm.num_layers=2 does not fit the .* which have 1 layers; config"),
        ({"model.num_memory_tokens": 2**40}, "take 1099511627776 positions, the model has 2048"),
        ({"model.num_write_steps": 10**9}, "num_write_steps=1000000000 is more than the 10000"),
        ({"data.alphabet_size": 10**9}, "alphabet_size=1000000000 must be in"),
        ({"data.num_pairs": 10**9, "data.key_length": 99}, "data.num_pairs=1000000000 is more th"),
        ({"data.num_pairs": 10**6, "data.key_length": 9}, "contexts of .* 13000001 tokens, more"),
        ({"batch_size": 2**70}, "batch_size=1180591620717411303424 must be"),
        ({"frozen": ("(a+)+$",)}, r"frozen '\(a\+\)\+\$' repeats a group"),
        ({"write_optimizer.name": "adam"}, "do not fit optax.adam"),
        ({"write_optimizer.name": "__class__"}, "'__class__' is not in optax"),
        ({"curriculum.num_pairs": [[1]]}, r"num_pairs=\(1,\) must be an integer"),
        ({"a.b": 3}, "has a field 'a.b'"),
        ({"note": json.loads("[" * 100 + "]" * 100)}, "groups in groups, 8 deep"),
    )
    def test_configurations_of_strangers(self, changes, message):
        fields = files.to_json(tiny_config().to_dict())
        for name, value in changes.items():
            group, _, field = name.partition(".")
            if group in fields:
                fields[group] = fields[group] | {field: value} if field else value
            else:
                fields[name] = value
        run = self.open(fields)
        with (
            mock.patch.object(jax, "eval_shape", side_effect=AssertionError("it is traced")),
            self.assertRaisesRegex(ValueError, message),
        ):
            _ = run.plan

    @parameterized.parameters(
        {"pretrained": "st/model.bin"},
        {"data.tokenizer_path": "st/tok.bin"},
    )
    def test_relative_paths_of_a_run_opened_elsewhere(self, **changes):
        config = default.get_config("gradmem", "squad", pretrained=True)
        config.update_from_flattened_dict(changes)
        ((name, path),) = changes.items()
        files.write_json(self.folder / "config.json", config.to_dict())
        message = f"no {path} in .*/config.json has {name}='{path}', which is relative to"
        with self.assertRaisesRegex(ValueError, message):
            _ = SavedRun(self.folder).plan
        with self.assertRaisesRegex(ValueError, "has data.data_dir='drawn.txt', which is relative"):
            check_paths(self.folder, {"data.data_dir": "drawn.txt"})
        check_paths(self.folder, {"a": "/nowhere", "b": "", "c": "experiments"})

    def test_damaged_configurations(self):
        whole = files.to_json(tiny_config().to_dict())
        less = lambda name: {key: value for key, value in whole.items() if key != name}
        for fields, message in (
            *(([], "method, .* missing"), (3, "missing"), (None, "missing"), ({}, "missing")),
            *((less(n), f"run: {n} missing") for n in ("method", "task", "data", "final_split")),
            (whole | {"model": []}, "run: model missing or of another type; copy"),
            (whole | {"write_optimizer": {"name": ""}}, "run: write_optimizer.arguments missing"),
        ):
            (self.folder / "config.json").write_text(json.dumps(fields))
            with self.assertRaisesRegex(ValueError, f"config.json is not the .*{message}"):
                _ = SavedRun(self.folder).plan
        (self.folder / "params.safetensors").touch()
        (self.folder / "exported.json").write_text("{}")
        with self.assertRaisesRegex(ValueError, "exported.json has no step; export the run again"):
            SavedRun(self.folder).params()


if __name__ == "__main__":
    absltest.main()
