"""Models by name, fetched from a hub that this test serves on 127.0.0.1."""

import contextlib
import json
import pathlib
import shutil
import sys
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.lm.pretrained.load import load_config, load_pretrained
from gradmem_jax.storage import hub as hub_names
from gradmem_jax.tokenizers.text_tokenizer import load_tokenizer
from tests.hub_server import FIRST, SECOND, HubTest, save_model

CONFIG = ["config.json"]
TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]
WEIGHTS = ["model.safetensors"]


class NamesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("org/name", "org/name", "", ""),
        ("org/name@v1.0", "org/name", "", "v1.0"),
        ("org/name@refs/pr/1", "org/name", "", "refs/pr/1"),
        ("org/na.me-1/a/b.gguf@main", "org/na.me-1", "a/b.gguf", "main"),
    )
    def test_names(self, text, *parts):
        name = hub_names.name_on_hub(pathlib.Path(text))
        self.assertEqual(name, parts)
        self.assertEqual(str(name), text)

    @parameterized.parameters(
        *("", "name", "/org/name", "./org/name", "../name", "org/..", "org/name/", "~/name"),
        *("org/name/x", "org/name/../x.gguf", "org/name@", "org/name@../x", "org/name@a b"),
        *("org/na\nme", "org/name\n", "örg/name", "https://hub/name", "org/name@a@b", "a\0/b"),
    )
    def test_other_texts(self, text):
        self.assertIsNone(hub_names.name_on_hub(text))

    def test_without_the_package(self):
        with mock.patch.dict(sys.modules, {"huggingface_hub": None}):
            said = "there is no org/name here; .* pip install huggingface_hub"
            self.assertRaisesRegex(ValueError, said, load_pretrained, "org/name")


class HubModelsTest(HubTest, parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.enter_context(contextlib.chdir(self.folder))
        self.start_hub(self.folder / "cache")
        for number, commit in enumerate((FIRST, SECOND)):
            save_model(commit, number)
            pathlib.Path(commit, "pytorch_model.bin").write_bytes(b"pickle")
        self.hub.publish("org/tiny", FIRST, FIRST, "v1")

    def refused(self, said, path="org/tiny", load=load_pretrained):
        with self.assertRaisesRegex(ValueError, said) as refused:
            load(path)
        self.assertNotIn("\n", str(refused.exception))

    def assert_is(self, pretrained, commit):
        local = load_pretrained(pathlib.Path(commit))
        self.assertEqual(pretrained.config, local.config)
        self.assertEqual(pretrained.tokenizer.decode([3]), local.tokenizer.decode([3]))
        jax.tree.map(np.testing.assert_array_equal, pretrained.params, local.params)

    def test_what_is_needed_is_fetched_once(self):
        self.assertEqual(load_config("org/tiny").width, 8)
        self.assertEqual(self.hub.fetched(), CONFIG)
        self.assertEqual(load_tokenizer("org/tiny").end_id, 1)
        self.assertEqual(self.hub.fetched(), TOKENIZER)
        self.assert_is(load_pretrained("org/tiny"), FIRST)
        self.assertEqual(self.hub.fetched(), WEIGHTS)
        self.assert_is(load_pretrained(f"org/tiny@{FIRST}"), FIRST)
        self.assertEmpty(self.hub.asked)  # a commit stays what it is
        self.set_environment(HF_HUB_OFFLINE="1")
        self.assert_is(load_pretrained("org/tiny"), FIRST)
        self.assertEmpty(self.hub.asked)

    def test_revisions(self):
        self.hub.publish("org/tiny", SECOND, SECOND)
        self.assertEqual(hub_names.pinned("org/tiny"), f"org/tiny@{SECOND}")
        self.assertEqual(hub_names.pinned("org/tiny@v1"), f"org/tiny@{FIRST}")
        self.assertEqual(hub_names.pinned("org/tiny", f"org/tiny@{FIRST}"), f"org/tiny@{FIRST}")
        self.assertEqual(hub_names.pinned("org/tiny", f"org/x@{FIRST}"), f"org/tiny@{SECOND}")
        self.assertEqual(hub_names.pinned("org/tiny@v1", f"org/tiny@{SECOND}")[-40:], FIRST)
        self.assertEqual(hub_names.pinned(FIRST), FIRST)
        self.assert_is(load_pretrained("org/tiny@v1"), FIRST)
        self.assert_is(load_pretrained("org/tiny"), SECOND)
        self.refused("org/tiny at http://127.* has no revision v2", "org/tiny@v2")

    def test_a_local_path_wins(self):
        shutil.copytree(SECOND, "org/tiny")
        self.assert_is(load_pretrained("org/tiny"), SECOND)
        self.assertEmpty(self.hub.asked)

    def test_weights_in_several_files(self):
        places = {
            "a": "model-1.safetensors",
            "b": "model-2.safetensors",
            "c": "model-1.safetensors",
        }
        index = pathlib.Path(FIRST, "model.safetensors.index.json")
        index.write_text(json.dumps({"weight_map": places}))
        pathlib.Path(FIRST, "model.safetensors").rename(f"{FIRST}/model-1.safetensors")
        self.refused("has no model-2.safetensors in http://")
        self.assertIn("model-1.safetensors", self.hub.fetched())

    @parameterized.parameters("../x.safetensors", "x.bin", "\x1b[2J.safetensors", "/x")
    def test_an_index_that_names_others(self, name):
        index = pathlib.Path(FIRST, "model.safetensors.index.json")
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        self.refused("model.safetensors.index.json.* names ")
        self.assertNotIn("\x1b", repr(self.hub.fetched()))

    def test_nothing_else_is_fetched_of_models_that_cannot_be(self):
        theirs = json.loads(pathlib.Path(FIRST, "config.json").read_text())
        pathlib.Path(FIRST, "config.json").write_text(json.dumps(theirs | {"model_type": "new"}))
        self.refused("model_type='new'")
        self.assertEqual(self.hub.fetched(), CONFIG)
        self.hub.sizes["config.json"] = 2**40
        self.hub.publish("org/large", SECOND, SECOND)
        self.refused("config.json of org/large has 1099511627776 bytes; it may have", "org/large")
        self.assertEmpty(self.hub.fetched())

    def test_only_safetensors(self):
        pathlib.Path(FIRST, "model.safetensors").unlink()
        self.refused("has no model.safetensors in .*; weights are read from safetensors only")
        self.assertNotIn("pytorch_model.bin", self.hub.fetched())

    def test_gguf_files(self):
        pathlib.Path("ggufs").mkdir()
        for name in ("m.gguf", "p-00001-of-00002.gguf", "p-00002-of-00002.gguf"):
            pathlib.Path("ggufs", name).write_text(f"this is {name}")
        self.hub.publish("org/ggufs", SECOND, "ggufs")
        self.refused(r"has no config.json; name one of its 3 GGUF files, such as org/", "org/ggufs")
        self.assertEmpty(self.hub.fetched())
        self.refused(r"m\.gguf is no GGUF file", "org/ggufs/m.gguf")
        self.assertEqual(self.hub.fetched(), ["m.gguf"])
        self.refused(r"m\.gguf is no GGUF file", "org/ggufs/m.gguf", load_tokenizer)
        self.assertEmpty(self.hub.fetched())
        self.refused("is no GGUF file", "org/ggufs/p-00001-of-00002.gguf", load_config)
        self.assertLen(self.hub.fetched(), 2)
        self.refused("has no x.gguf in http", "org/ggufs/x.gguf")

    def test_who_may_not_read(self):
        self.refused("there is no org/tiny2 here, and http.* no model org/tiny2", "org/tiny2")
        self.hub.gated.add("org/tiny")
        self.refused("accept its terms: do that at http.*/org/tiny, and set HF_TOKEN")
        self.set_environment(HF_TOKEN="hf_secret")
        self.assert_is(load_pretrained("org/tiny"), FIRST)

    def test_without_a_network(self):
        self.set_environment(HF_HUB_OFFLINE="1")
        self.refused("there is no org/tiny here, nor in the cache .*, and HF_HUB_OFFLINE is set")
        self.set_environment(HF_ENDPOINT="http://127.0.0.1:9")
        self.refused(r"there is no org/tiny here, and it cannot be fetched from http://127.0.0.1:9")
        self.set_environment()
        load_pretrained("org/tiny")
        self.set_environment(HF_ENDPOINT="http://127.0.0.1:9")
        self.assert_is(load_pretrained("org/tiny"), FIRST)


if __name__ == "__main__":
    absltest.main()
