"""Models of Hugging Face: logits of the originals, round trips, files that are refused."""

import itertools
import json
import pathlib
import shutil
import tempfile
import unittest

import jax
import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file, save_file

from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.pretrained.hugging_face import read_config, write_config
from gradmem_jax.lm.pretrained.load import Pretrained, load_pretrained, save_pretrained
from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer
from tests.golden_cases import split_weights
from tests.kills import killed

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
NAMES = ("lm_llama", "lm_llama3", "lm_gpt2", "lm_gpt_neox", "lm_mamba")


def logits(pretrained, ids):
    lm = make_lm(pretrained.config)
    run = jax.jit(lambda params, ids: lm.apply({"params": params}, ids, method="everything"))
    return run(pretrained.params, ids.astype(np.int32))


def expected(name):
    return load_file(GOLDEN / name / "expected.safetensors")


class HuggingFaceTest(parameterized.TestCase):
    def copy(self, name, **config):
        """A copy of a golden model in a new folder, with changes of its config.json."""
        folder = pathlib.Path(self.create_tempdir().full_path) / name
        shutil.copytree(GOLDEN / name, folder)
        theirs = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(theirs))
        return folder

    def change_tensors(self, folder, change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    @parameterized.product(name=NAMES, scan_layers=(False, True))
    def test_logits_are_those_of_the_original(self, name, scan_layers):
        pretrained = load_pretrained(GOLDEN / name, scan_layers=scan_layers)
        want = expected(name)
        got = logits(pretrained, want["ids"])
        scale = np.abs(want["logits"]).max()
        np.testing.assert_allclose(got, want["logits"], rtol=1e-5, atol=1e-5 * scale)

    @parameterized.product(name=NAMES, scan_layers=(False, True))
    def test_saved_tensors_are_the_same(self, name, scan_layers):
        folder = pathlib.Path(self.create_tempdir().full_path) / "new"
        pretrained = load_pretrained(GOLDEN / name, scan_layers=scan_layers)
        save_pretrained(folder, pretrained)
        want = load_file(GOLDEN / name / "model.safetensors")
        got = load_file(folder / "model.safetensors")
        self.assertEqual(got.keys(), want.keys())
        for key, x in want.items():
            np.testing.assert_array_equal(got[key], x, key)
        again = load_pretrained(folder, scan_layers=scan_layers)
        self.assertEqual(write_config(again.config), write_config(pretrained.config))
        jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)

    @parameterized.parameters(*NAMES)
    def test_transformers_opens_what_is_saved(self, name):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise unittest.SkipTest("torch and transformers are not installed") from error
        folder = pathlib.Path(self.create_tempdir().full_path) / "new"
        save_pretrained(folder, load_pretrained(GOLDEN / name))
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True
        )
        self.assertEmpty([names for names in report.values() if names])
        want = expected(name)
        with torch.no_grad():
            got = model.eval()(torch.from_numpy(want["ids"]), use_cache=False).logits.numpy()
        scale = np.abs(want["logits"]).max()
        np.testing.assert_allclose(got, want["logits"], rtol=1e-5, atol=1e-5 * scale)

    def test_several_files(self):
        folder = self.copy("lm_llama")
        split_weights(folder)
        want = load_pretrained(GOLDEN / "lm_llama")
        got = load_pretrained(folder)
        jax.tree.map(np.testing.assert_array_equal, got.params, want.params)
        (folder / "model-00002-of-00002.safetensors").unlink()
        with self.assertRaisesRegex(ValueError, "lacks model-00002-of-00002.safetensors"):
            load_pretrained(folder)

    @parameterized.parameters(
        ("../model.safetensors", "must be in its folder"),
        ("/model.safetensors", "must be in its folder"),
        ("sub/model.safetensors", "must be in its folder"),
        ("..", "must be in its folder"),
        ("model.safetensors", "only one of them has the tensors .'lm_head.weight'"),
    )
    def test_an_index_that_is_wrong(self, place, message):
        folder = self.copy("lm_llama")
        names = load_file(folder / "model.safetensors")
        index = dict.fromkeys(names, "model.safetensors")
        index["lm_head.weight"] = place
        if place == "model.safetensors":
            del index["lm_head.weight"]
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps({"weight_map": index}))
        with self.assertRaisesRegex(ValueError, message):
            load_pretrained(folder)

    def test_a_tensor_in_two_files(self):
        folder = self.copy("lm_llama")
        names = load_file(folder / "model.safetensors")
        save_file({"lm_head.weight": names["lm_head.weight"]}, folder / "two.safetensors")
        index = dict.fromkeys(names, "model.safetensors") | {"lm_head.weight": "two.safetensors"}
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps({"weight_map": index}))
        with self.assertRaisesRegex(ValueError, "does not fit model.safetensors: .*lm_head"):
            load_pretrained(folder)

    def test_files_of_two_models(self):
        one, two = (pathlib.Path(self.create_tempdir().full_path) for _ in range(2))
        model = load_pretrained(GOLDEN / "lm_llama")
        save_pretrained(one, model)
        other = jax.tree.map(np.copy, model.params)
        other["embedding"][0, 0] += 1
        save_pretrained(two, model._replace(params=other))
        for name in ("config.json", "model.safetensors"):
            with tempfile.TemporaryDirectory() as mixed:
                shutil.copytree(one, mixed, dirs_exist_ok=True)
                shutil.copy(two / name, mixed)
                with self.assertRaisesRegex(ValueError, "are of different models"):
                    load_pretrained(mixed)
                # Other programs write the weights without our mark.
                save_file(load_file(two / "model.safetensors"), f"{mixed}/model.safetensors")
                load_pretrained(mixed)

    def test_kill_while_saving(self):
        """Whenever `save_pretrained` ends, there is the old model, the new one, or none."""
        folder = pathlib.Path(self.create_tempdir().full_path) / "model"
        tokenizer = word_tokenizer(["an old clock"])
        old = load_pretrained(GOLDEN / "lm_llama")._replace(tokenizer=tokenizer)
        params = jax.tree.map(lambda x: x + 1, old.params)
        new = old._replace(params=params, tokenizer=word_tokenizer(["a new watch"]))
        save_pretrained(folder.with_name("old"), old)
        found = set()
        for place in itertools.count(1):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(folder.with_name("old"), folder)
            was_killed = killed(folder, place, lambda: save_pretrained(folder, new))
            try:
                got = load_pretrained(folder)
            except ValueError as error:
                self.assertRegex(str(error), "has no config.json")
                found.add("none")
                continue
            want = new if got.params["embedding"][0, 0] > old.params["embedding"][0, 0] else old
            jax.tree.map(np.testing.assert_array_equal, got.params, want.params)
            self.assertEqual(got.tokenizer.backend.to_str(), want.tokenizer.backend.to_str())
            found.add("new" if want is new else "old")
            if not was_killed:
                break
        self.assertEqual(found, {"old", "none", "new"})

    @parameterized.parameters(
        (
            "lm_llama",
            dict(max_positions=2048, norm_epsilon=1e-6, init_std=0.02, tied_head=False)
            | dict(rope_base=10_000.0, rope_scaling=None, kv_heads=4, head_size=4),
        ),
        (
            "lm_gpt2",
            dict(max_positions=1024, norm_epsilon=1e-5, init_std=0.02, tied_head=True)
            | dict(mlp_size=64),
        ),
        (
            "lm_gpt_neox",
            dict(max_positions=2048, norm_epsilon=1e-5, init_std=0.02, tied_head=False)
            | dict(rope_base=10_000.0, rotary_fraction=0.25, parallel_residual=True),
        ),
        (
            "lm_mamba",
            dict(norm_epsilon=1e-5, init_std=0.1, tied_head=True, state_size=16, conv_size=4)
            | dict(expand=2, time_step_rank=1),
        ),
    )
    def test_what_absent_keys_mean(self, name, want):
        theirs = json.loads((GOLDEN / name / "config.json").read_text())
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        sizes += ("intermediate_size", "n_embd", "n_layer", "n_head", "model_type")
        if name == "lm_mamba":
            sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "model_type")
        config = read_config({key: theirs[key] for key in sizes if key in theirs})
        self.assertEqual({field: getattr(config, field) for field in want}, want)

    @parameterized.parameters("bfloat16", "float16")
    def test_half_precision_files(self, dtype):
        folder = pathlib.Path(self.create_tempdir().full_path) / "half"
        pretrained = load_pretrained(GOLDEN / "lm_llama", param_dtype=dtype)
        save_pretrained(folder, pretrained)
        theirs = json.loads((folder / "config.json").read_text())
        self.assertEqual(theirs["torch_dtype"], dtype)
        got = load_pretrained(folder)
        for x, y in zip(
            jax.tree.leaves(got.params), jax.tree.leaves(pretrained.params), strict=True
        ):
            self.assertEqual((x.dtype, y.dtype), (np.float32, np.dtype(dtype)))
            np.testing.assert_array_equal(x, y.astype(np.float32))

    @parameterized.parameters(
        ("lm_gpt2", "transformer.", ""),
        ("lm_llama", "model.", ""),
        ("lm_mamba", "backbone.embeddings.", "backbone.embedding."),
    )
    def test_other_names(self, name, full, other):
        folder = self.copy(name)

        def change(tensors):
            for key in [key for key in tensors if key.startswith(full)]:
                tensors[key.replace(full, other, 1)] = tensors.pop(key)

        self.change_tensors(folder, change)
        want = load_pretrained(GOLDEN / name).params
        jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder).params, want)

    def test_buffers_of_old_versions(self):
        folder = self.copy("lm_gpt2")
        mask = np.ones((1, 1, 64, 64), bool)
        self.change_tensors(
            folder, lambda tensors: tensors.update({"transformer.h.0.attn.bias": mask})
        )
        load_pretrained(folder)

    def test_all_wrong_tensors_are_named(self):
        folder = self.copy("lm_llama")

        def change(tensors):
            del tensors["model.norm.weight"], tensors["lm_head.weight"]
            tensors["model.embed_tokens.weight"] = np.zeros((48, 3), np.float32)
            tensors["model.layers.0.self_attn.q_norm.weight"] = np.zeros(3, np.float32)

        self.change_tensors(folder, change)
        with self.assertRaises(ValueError) as caught:
            load_pretrained(folder)
        for part in (
            "no tensor 'model.norm.weight'",
            "no tensor 'lm_head.weight'",
            "'model.embed_tokens.weight' has shape (48, 3) instead of (48, 16)",
            "'model.layers.0.self_attn.q_norm.weight' is unexpected",
        ):
            self.assertIn(part, str(caught.exception))

    @parameterized.parameters(
        ("lm_llama", dict(rope_interleaved=True), "rope_interleaved=True is not supported"),
        ("lm_llama", dict(hidden_act="relu"), "hidden_act='relu'"),
        ("lm_llama", dict(model_type="qwen2"), "model_type='qwen2'.* choose one of"),
        ("lm_llama", dict(architectures=["LlamaForTokenClassification"]), "ForTokenClass"),
        ("lm_llama", dict(quantization_config={"bits": 4}), "quantization_config"),
        (
            "lm_llama",
            dict(rope_parameters={"rope_theta": 1e4, "rope_type": "mrope"}),
            "rope_scaling of type 'mrope'",
        ),
        (
            "lm_llama",
            dict(rope_parameters=None, rope_scaling={"type": "llama3", "factor": 8.0}),
            "lacks .'low_freq_factor', 'high_freq_factor', 'original_max_position",
        ),
        ("lm_gpt2", dict(scale_attn_by_inverse_layer_idx=True), "inverse_layer_idx=True"),
        ("lm_gpt_neox", dict(hidden_act="gelu_new"), "hidden_act='gelu_new'"),
        ("lm_gpt_neox", dict(attention_bias=False), "attention_bias=False"),
        ("lm_mamba", dict(use_bias=True), "use_bias=True"),
    )
    def test_config_refusals_come_before_the_weights(self, name, config, message):
        folder = self.copy(name, **config)
        (folder / "model.safetensors").unlink()
        with self.assertRaisesRegex(ValueError, message):
            load_pretrained(folder)

    @parameterized.parameters(
        (np.float32, np.nan, {}, "is not finite"),
        (np.float32, np.inf, dict(param_dtype="bfloat16"), "is not finite"),
        (np.float16, -np.inf, dict(param_dtype="float16"), "is not finite"),
        (np.float64, 1e300, {}, r"has 1e\+300, which is too large for param_dtype='float32'"),
        (np.float32, -7e4, dict(param_dtype="float16"), "has 7e.04, which is too large"),
        (
            np.float32,
            3.4e38,
            dict(param_dtype="bfloat16"),
            "has 3.* large for param_dtype='bfloat16'",
        ),
        (np.int32, 1, {}, "is of type I32; weights must be"),
        (np.float64, 1.5, {}, None),
        (np.float32, 6e4, dict(param_dtype="float16"), None),
        (np.float16, 6e4, dict(param_dtype="bfloat16"), None),
    )
    def test_numbers(self, dtype, value, changes, message):
        folder = self.copy("lm_llama")

        def change(tensors):
            tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(dtype)
            tensors["model.norm.weight"][3] = value

        self.change_tensors(folder, change)
        if message is not None:
            with self.assertRaisesRegex(ValueError, f"the tensor 'model.norm.weight' {message}"):
                load_pretrained(folder, **changes)
            return
        got = load_pretrained(folder, **changes).params["final_norm"]["scale"]
        np.testing.assert_allclose(float(got[3]), value, rtol=1e-2)

    def test_rope_scaling_of_transformers_4(self):
        folder = self.copy(
            "lm_llama3",
            rope_parameters=None,
            rope_theta=1000,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        )
        want = load_pretrained(GOLDEN / "lm_llama3").config
        self.assertEqual(load_pretrained(folder).config, want)
        self.assertIsNotNone(want.rope_scaling)

    def test_missing_and_damaged_files(self):
        with self.assertRaisesRegex(ValueError, "there is no nowhere"):
            load_pretrained("nowhere")
        with self.assertRaisesRegex(ValueError, "no config.json"):
            load_pretrained(self.create_tempdir().full_path)
        folder = self.copy("lm_llama", vocab_size=None)
        theirs = json.loads((folder / "config.json").read_text())
        del theirs["vocab_size"], theirs["hidden_size"]
        (folder / "config.json").write_text(json.dumps(theirs))
        with self.assertRaisesRegex(ValueError, "vocab_size is missing; hidden_size is missing"):
            load_pretrained(folder)
        (folder / "config.json").write_text("{")
        with self.assertRaisesRegex(ValueError, "config.json, .* is damaged"):
            load_pretrained(folder)
        folder = self.copy("lm_llama")
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
        with self.assertRaisesRegex(ValueError, "cut short, damaged"):
            load_pretrained(folder)
        file.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"never opened")
        with self.assertRaisesRegex(ValueError, "lacks model.safetensors; .*safetensors only"):
            load_pretrained(folder)

    def test_tokenizer(self):
        folder = pathlib.Path(self.create_tempdir().full_path) / "new"
        tokenizer = word_tokenizer(["an old clock", "ticks, ticks"])
        save_pretrained(folder, load_pretrained(GOLDEN / "lm_gpt2")._replace(tokenizer=tokenizer))
        (folder / "other.gguf").write_bytes(b"not asked")
        got = load_pretrained(folder).tokenizer
        ids = tokenizer.encode("old clock, old")
        np.testing.assert_array_equal(got.encode("old clock, old"), ids)
        special = lambda tokenizer: (tokenizer.pad_id, tokenizer.end_id, tokenizer.vocab_size)
        self.assertEqual(special(got), special(tokenizer))
        names = {"pad_token": None, "eos_token": {"content": "clock"}}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        self.assertEqual(load_pretrained(folder).tokenizer.end_id, int(ids[1]))
        large = word_tokenizer([" ".join(f"word{i}" for i in range(60))])
        large.save(folder / "tokenizer.json")
        (folder / "tokenizer_config.json").unlink()
        with self.assertRaisesRegex(ValueError, "tokenizer has 63 ids, the model 48"):
            load_pretrained(folder)
        tokenizer.save(folder / "other.json")
        got = load_pretrained(folder, tokenizer=folder / "other.json").tokenizer
        self.assertEqual(special(got), special(tokenizer))

    def test_an_older_model_in_several_files_is_replaced(self):
        folder = self.copy("lm_llama")
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
        with self.assertRaisesRegex(ValueError, "lacks gone.safetensors"):
            load_pretrained(folder)
        save_pretrained(folder, load_pretrained(GOLDEN / "lm_llama"))
        load_pretrained(folder)
        index.write_text("[]")
        with self.assertRaisesRegex(ValueError, "index.json is damaged"):
            load_pretrained(folder)

    def test_the_tokenizer_of_an_older_model_is_removed(self):
        folder = self.copy("lm_llama")
        model = load_pretrained(folder)
        save_pretrained(folder, model._replace(tokenizer=word_tokenizer(["an old clock"])))
        (folder / "vocab.json").write_text("{}")
        save_pretrained(folder, load_pretrained(folder)._replace(tokenizer=None))
        self.assertIsNone(load_pretrained(folder).tokenizer)
        self.assertEqual(
            sorted(path.name for path in folder.iterdir()),
            sorted(path.name for path in self.copy("lm_llama").iterdir()),
        )

    def test_fewer_learned_positions(self):
        whole = load_pretrained(GOLDEN / "lm_gpt2")
        cut = load_pretrained(GOLDEN / "lm_gpt2", max_positions=5)
        self.assertEqual(cut.config.max_positions, 5)
        np.testing.assert_array_equal(
            cut.params["position_embedding"], whole.params["position_embedding"][:5]
        )
        more = whole.config.max_positions + 1
        with self.assertRaisesRegex(ValueError, rf"wpe.weight' has shape .* instead of \({more},"):
            load_pretrained(GOLDEN / "lm_gpt2", max_positions=more)

    def test_changes(self):
        config = load_pretrained(GOLDEN / "lm_llama", max_positions=7, dtype="bfloat16").config
        self.assertEqual((config.max_positions, config.dtype), (7, "bfloat16"))
        with self.assertRaisesRegex(ValueError, r"\['layers'\] are no fields of LlamaConfig"):
            load_pretrained(GOLDEN / "lm_llama", layers=3)

    def test_parameters_of_another_configuration_are_not_saved(self):
        pretrained = load_pretrained(GOLDEN / "lm_llama")
        params = dict(pretrained.params)
        params["extra"] = params.pop("final_norm")
        folder = pathlib.Path(self.create_tempdir().full_path) / "new"
        with self.assertRaisesRegex(ValueError, "no 'final_norm/scale'; 'extra/scale' is unexp"):
            save_pretrained(folder, Pretrained(pretrained.config, params))
        self.assertFalse(folder.exists())


if __name__ == "__main__":
    absltest.main()
