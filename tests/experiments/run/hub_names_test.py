"""Names on a hub: a run keeps the commit it began with, a memory names it, nobody else does."""

import contextlib
import json
import pathlib

from absl.testing import absltest, parameterized

from experiments.answers.open_model import open_model
from experiments.answers.reopen_model import not_beside, reopen_model
from experiments.configs.default import get_config
from experiments.run.build_model import build_model, build_task
from experiments.run.hub_names import with_commits
from experiments.run.saved_run import check_paths
from tests.hub_server import FIRST, SECOND, HubTest, save_model

BEGAN, NOW = f"org/tiny@{FIRST}", f"org/tiny@{SECOND}"


class HubNamesTest(HubTest, parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.enter_context(contextlib.chdir(self.folder))
        self.start_hub(self.folder / "cache")
        save_model(FIRST)
        self.hub.publish("org/tiny", FIRST, FIRST)
        self.hub.publish("org/tiny", SECOND, FIRST)

    @parameterized.parameters(
        ("org/tiny", "", NOW),
        ("org/tiny", BEGAN, BEGAN),
        ("org/tiny", "elsewhere/model", NOW),
        (NOW, BEGAN, NOW),
        ("org/tiny@main", BEGAN, NOW),
        (FIRST, BEGAN, FIRST),
    )
    def test_the_commit_of_a_run(self, asked, earlier, want):
        config = get_config(task="phone_book", pretrained=True)
        config.pretrained, config.data.tokenizer_path = asked, asked
        fields = {"pretrained": earlier, "data": {"tokenizer_path": earlier}}
        (self.folder / "config.json").write_text(json.dumps(fields))
        found = with_commits(config.lock(), self.folder)
        self.assertEqual((found.pretrained, found.data.tokenizer_path), (want, want))
        self.assertEqual(config.pretrained, asked)

    def test_a_run_is_built_of_config_and_tokenizer(self):
        config = get_config(task="phone_book", pretrained=True)
        config.pretrained = "org/tiny"
        config = with_commits(config, self.folder)
        self.assertEqual(build_model(config, build_task(config)).config.lm.width, 8)
        sent = ["config.json", "tokenizer.json", "tokenizer_config.json"]
        self.assertEqual(self.hub.fetched(), sent)
        check_paths(self.folder, {"pretrained": config.pretrained})
        with self.assertRaisesRegex(ValueError, "there is no org/tiny in"):
            check_paths(self.folder, {"pretrained": "org/tiny"})

    def test_a_memory_names_the_commit_and_fetches_nothing_unasked(self):
        notes = open_model("org/tiny").notes
        self.assertEqual(notes["model"], NOW)
        memory = str(self.folder / "memory.safetensors")
        self.assertEqual(not_beside(memory, notes), {"model": NOW})
        self.hub.asked = []
        for name in (NOW, "org/tiny", "org/evil"):
            with self.assertRaisesRegex(ValueError, f"names a model outside .* --model={name}$"):
                reopen_model(memory, notes | {"model": name})
        tokenizer = {"options": {"tokenizer_path": "org/evil"}}
        with self.assertRaisesRegex(ValueError, "names a tokenizer .* --tokenizer=org/evil$"):
            reopen_model(memory, notes | tokenizer, NOW)
        self.assertEmpty(self.hub.asked)
        notes = {"options": {"num_memory_tokens": 1000}}
        with self.assertRaisesRegex(ValueError, "leaves no room"):  # so the model was opened
            reopen_model(memory, notes, NOW)


if __name__ == "__main__":
    absltest.main()
