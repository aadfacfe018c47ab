"""Llama's relatives, as transformers saves them: logits, greedy ids, saved again, other forms."""

import dataclasses
import json
import pathlib
import shutil
import unittest

import jax
import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file, save_file

from gradmem_jax import FullContext, FullContextConfig, StateSpace, StateSpaceConfig, generate
from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.pretrained.hugging_face import read_config, write_config
from gradmem_jax.lm.pretrained.load import from_hugging_face, load_pretrained, save_pretrained
from gradmem_jax.lm.rotary import RopeScaling
from tests.golden_cases import split_weights

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
FULL_CONTEXT = (FullContext, FullContextConfig)
FAMILIES = {
    "lm_llama_bias": "llama",
    "lm_mistral": "mistral",
    "lm_qwen2": "qwen2",
    "lm_qwen3": "qwen3",
    "lm_gemma2": "gemma2",
    "lm_gemma3": "gemma3_text",
    "lm_olmo2": "olmo2",
    "lm_smollm3": "smollm3",
    "lm_phi3": "phi3",
    "lm_mamba2": "mamba2",
}


def logits(pretrained, ids):
    lm = make_lm(pretrained.config)
    run = jax.jit(lambda params, ids: lm.apply({"params": params}, ids, method="everything"))
    return run(pretrained.params, ids.astype(np.int32))


class RelativesTest(parameterized.TestCase):
    def new_folder(self):
        return pathlib.Path(self.create_tempdir().full_path) / "model"

    def copy(self, name, **config):
        """A copy of a golden model, with changes of its config.json; a key that is None goes."""
        folder = self.new_folder()
        shutil.copytree(GOLDEN / name, folder)
        theirs = json.loads((folder / "config.json").read_text()) | config
        theirs = {key: value for key, value in theirs.items() if key not in config or value}
        (folder / "config.json").write_text(json.dumps(theirs))
        return folder

    def check_logits(self, got, want):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())

    @parameterized.parameters(*FAMILIES)
    def test_logits_and_greedy_ids_are_those_of_transformers(self, name):
        want = load_file(GOLDEN / name / "expected.safetensors")
        for scan_layers in (True, False):
            pretrained = load_pretrained(GOLDEN / name, scan_layers=scan_layers)
            self.check_logits(logits(pretrained, want["ids"]), want["logits"])
        params, ids = {"lm": pretrained.params}, want["ids"][:, :12].astype(np.int32)
        pad_id = next(i for i in range(48) if i not in ids and i not in want["greedy_ids"])
        kinds = (StateSpace, StateSpaceConfig) if name == "lm_mamba2" else FULL_CONTEXT
        model = kinds[0](kinds[1](lm=pretrained.config, pad_id=pad_id))
        memory, _ = jax.jit(model.write_memory)(params, ids[:, :8])
        made = generate(model, params, memory, ids[:, 8:], want["greedy_ids"].shape[1])
        np.testing.assert_array_equal(made, want["greedy_ids"])

    @parameterized.parameters(*FAMILIES.items())
    def test_saved_again(self, name, model_type):
        how = dict(remat="full", matmul_precision="high")  # it is computed is no part of a model
        how |= {} if name == "lm_mamba2" else dict(attention="xla", gather="layer")
        pretrained, folder = load_pretrained(GOLDEN / name, **how), self.new_folder()
        save_pretrained(folder, pretrained)
        want = load_file(GOLDEN / name / "model.safetensors")
        got = load_file(folder / "model.safetensors")
        self.assertEqual(got.keys(), want.keys())
        for key, x in want.items():
            np.testing.assert_array_equal(got[key], x, key)
        theirs = json.loads((folder / "config.json").read_text())
        self.assertEqual(theirs["model_type"], model_type)
        again = load_pretrained(folder)
        self.assertEqual(write_config(again.config), write_config(pretrained.config))
        for params in (again.params, from_hugging_face(want, pretrained.config)):
            jax.tree.map(np.testing.assert_array_equal, params, pretrained.params)

    @parameterized.parameters(*FAMILIES)
    def test_transformers_opens_what_is_saved(self, name):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise unittest.SkipTest("torch and transformers are not installed") from error
        folder = self.new_folder()
        save_pretrained(folder, load_pretrained(GOLDEN / name))
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True
        )
        self.assertEmpty([names for names in report.values() if names])
        want = load_file(GOLDEN / name / "expected.safetensors")
        with torch.no_grad():
            got = model.eval()(torch.from_numpy(want["ids"]), use_cache=False).logits.numpy()
        self.check_logits(got, want["logits"])

    @parameterized.parameters("lm_phi3", "lm_gemma3")
    def test_several_files(self, name):
        folder = self.copy(name)
        split_weights(folder)
        want = load_pretrained(GOLDEN / name).params
        jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder).params, want)

    @parameterized.parameters(
        ("lm_llama_bias", "LlamaModel"),
        ("lm_qwen2", "Qwen2Model"),
        ("lm_gemma3", "Gemma3TextModel"),
        ("lm_gpt_neox", "GPTNeoXModel"),
    )
    def test_base_classes_have_no_head(self, name, architecture):
        folder = self.copy(name, architectures=[architecture])
        whole = load_pretrained(GOLDEN / name)
        theirs = load_file(folder / "model.safetensors")
        bare = {
            key.removeprefix("model.").removeprefix("gpt_neox."): x
            for key, x in theirs.items()
            if key not in ("lm_head.weight", "embed_out.weight")
        }
        save_file(bare, folder / "model.safetensors")
        got = load_pretrained(folder)
        self.assertTrue(got.config.tied_head)
        want = {key: x for key, x in whole.params.items() if key != "head"}
        jax.tree.map(np.testing.assert_array_equal, got.params, want)

    @parameterized.parameters("lm_llama3", "lm_gemma2", "lm_gpt2")
    def test_tied_weights_under_the_name_of_the_head_only(self, name):
        folder = self.copy(name)
        tensors = load_file(folder / "model.safetensors")
        embedding = next(key for key in tensors if "embed_tokens" in key or "wte" in key)
        tensors["lm_head.weight"] = tensors.pop(embedding)
        save_file(tensors, folder / "model.safetensors")
        want = load_pretrained(GOLDEN / name)
        jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder).params, want.params)
        got = from_hugging_face(tensors, want.config)
        jax.tree.map(np.testing.assert_array_equal, got, want.params)

    def test_fused_tensors_of_another_size(self):
        folder = self.copy("lm_phi3")
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.self_attn.qkv_proj.weight"] = np.zeros((30, 16), np.float32)
        save_file(tensors, folder / "model.safetensors")
        with self.assertRaisesRegex(ValueError, r"1.self_attn.qkv_proj.weight' has shape \(30, 16"):
            load_pretrained(folder)

    @parameterized.parameters(
        ("lm_qwen2", dict(use_sliding_window=None, layer_types=None), dict(window=None)),
        ("lm_qwen2", dict(layer_types=None), dict(window=8, window_layers=(1,))),
        ("lm_mistral", dict(sliding_window=None), dict(window=4096, window_layers=())),
        (
            "lm_mistral",
            dict(
                model_type="ministral",
                architectures=["MinistralForCausalLM"],
                layer_types=["full_attention", "sliding_attention"],
            ),
            dict(window=8, window_layers=(1,)),
        ),
        ("lm_gemma2", dict(layer_types=None), dict(window=8, window_layers=(0,))),
        (
            "lm_gemma3",
            dict(layer_types=None, rope_parameters=None, rope_local_base_freq=100.0),
            dict(window_layers=(), window_rope_base=100.0, rope_base=1e6, rope_scaling=None),
        ),
        ("lm_smollm3", dict(no_rope_layers=None, no_rope_layer_interval=2), dict(window=None)),
        ("lm_smollm3", dict(no_rope_layers=None), dict(no_rope_layers=())),
        ("lm_phi3", dict(partial_rotary_factor=1.0), dict(rotary_fraction=0.5)),
        (
            "lm_mistral",
            dict(rope_theta=1e4, rope_scaling=dict(rope_type="linear", factor=2.0, rope_theta=777)),
            dict(rope_base=777, rope_scaling=RopeScaling("linear", 2.0)),
        ),
        (
            "lm_mistral",
            dict(rope_parameters=None, rope_scaling=dict(type="default", rope_theta=777.0)),
            dict(rope_base=777.0, rope_scaling=None),
        ),
        (
            "lm_gemma3",
            dict(rope_scaling=dict(rope_type="linear", factor=2.0)),
            dict(rope_base=1e3, window_rope_base=100.0, rope_scaling=RopeScaling("linear", 2.0)),
        ),
    )
    def test_what_absent_keys_mean(self, name, changes, want):
        theirs = json.loads((GOLDEN / name / "config.json").read_text()) | changes
        theirs = {key: x for key, x in theirs.items() if x is not None}
        config = read_config(theirs)
        self.assertEqual({field: getattr(config, field) for field in want}, want)
        written = write_config(config)
        self.assertEqual(write_config(read_config(written)), written)

    @parameterized.parameters(
        (0.5, 64, "phi3", False),
        (0.5, 16, "phi3", True),
        (1.0, 64, "llama", True),
        (1.0, 16, "llama", True),
    )
    def test_longrope_as_written(self, rotary_fraction, max_positions, model_type, says_factor):
        """Transformers 4 looks for the original length outside of the group of rotary keys."""
        config = read_config(json.loads((GOLDEN / "lm_phi3" / "config.json").read_text()))
        factors = (1.0,) * round(2 * rotary_fraction)
        scaling = dataclasses.replace(
            config.rope_scaling, short_factors=factors, long_factors=factors
        )
        config = dataclasses.replace(
            config,
            rotary_fraction=rotary_fraction,
            max_positions=max_positions,
            rope_scaling=scaling,
        )
        written = write_config(config)
        self.assertEqual(written["model_type"], model_type)
        self.assertEqual(written["original_max_position_embeddings"], 32)
        group = written["rope_scaling"]
        want = scaling.turned_scale if says_factor else None
        self.assertEqual(group.get("attention_factor"), want)
        if not says_factor:
            self.assertEqual(group.keys(), {"type", "short_factor", "long_factor"})
        again = read_config(written)
        self.assertEqual(again.rope_scaling.turned_scale, scaling.turned_scale)
        self.assertEqual(write_config(again), written)

    @parameterized.parameters(
        ("lm_qwen3", dict(model_type="qwen3_moe", num_experts=8), "num_experts: a mixture of exp"),
        ("lm_gemma3", dict(vision_config={"a": 1}), "vision_config: a model with a vision tower"),
        ("lm_gemma2", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        ("lm_gemma2", dict(layer_types=["chunked_attention"] * 2), "layer_types=.*must be a list"),
        ("lm_gemma2", dict(sliding_window=None), "no sliding_window says how far"),
        ("lm_smollm3", dict(no_rope_layers=[1]), "no_rope_layers=.*one for each of the 2 layers"),
        ("lm_mistral", dict(scale_depth=1.4), "not known here: .'scale_depth': 1.4"),
        ("lm_mistral", dict(num_hidden_layers=10**12), "1000000000000 layers; at most"),
        ("lm_smollm3", dict(num_hidden_layers=10**12, no_rope_layers=None), "layers; at most"),
        ("lm_gpt_neox", dict(rope_theta=9.0), "rope_theta=9.0 must be rotary_emb_base=1000.0"),
        ("lm_gpt_neox", dict(partial_rotary_factor=1.0), "must be rotary_pct=0.25"),
        (
            "lm_mistral",
            dict(rope_scaling=dict(type="linear", factor=2.0, partial_rotary_factor=0.5)),
            "partial_rotary_factor=0.5 is not supported",
        ),
        ("lm_mistral", dict(rope_parameters=dict(factor=2.0)), "rope_scaling of type None"),
        ("lm_mamba2", dict(n_groups=8), "n_groups=8 is not supported, only 1"),
        ("lm_mamba2", dict(num_heads=2), "num_heads=2 is not supported.* are 4"),
        ("lm_mamba2", dict(time_step_limit=[0.0, 1.0]), "time_step_limit=.0.0, 1.0. is not"),
        ("lm_phi3", dict(rope_parameters=dict(rope_type="longrope")), "lacks .'short_factor'"),
        (
            "lm_phi3",
            dict(
                rope_parameters=dict(
                    rope_type="longrope", short_factor=[1.0], long_factor=[2.0], long_mscale=1.2
                )
            ),
            "'long_mscale': 1.2. is not supported",
        ),
        (
            "lm_phi3",
            dict(
                rope_parameters=dict(
                    rope_type="longrope", short_factor=[1.0, 1.0], long_factor=[2.0]
                )
            ),
            "long_factors has 1 numbers; it must have 2, one for",
        ),
    )
    def test_refusals(self, name, changes, message):
        theirs = json.loads((GOLDEN / name / "config.json").read_text()) | changes
        with self.assertRaisesRegex(ValueError, message):
            read_config(theirs)

    @parameterized.parameters(
        ("qwen3", dict(_name_or_path="x", unsloth_fixed=True, some_dropout=0.1, new_key=None)),
        ("qwen3", dict(task_specific_params={"a": 1}, top_p=0.9, pretraining_tp=4)),
        ("llama", dict(is_llama_config=True, **{"transformers.js_config": {"dtype": "q4"}})),
        ("gemma2", dict(cache_implementation="hybrid", hidden_act="gelu", sliding_window_size=9)),
        ("phi3", dict(auto_map={"a": "b"}, full_attn_mod=1, interpolate_factor=1)),
        ("mamba", dict(d_model=768, fused_add_norm=True, n_layer=24, rms_norm=True, ssm_cfg={})),
        (
            "qwen2",
            dict(attention_bias=False, tokenizer_padding_side="right", padding_side="left")
            | dict(model_max_length=4096, ignore_index=-100, eos_token="</s>", is_decoder=True)
            | dict(aux_loss_alpha=0.001, unsloth_version="2025.1", temperature=0.7)
            | dict(_attn_implementation_autoset=True, name_or_path="x", finetuning_task="y")
            | dict(problem_type="z", id2label={"0": "a"}, label2id={"a": 0}, max_length=20)
            | dict(do_sample=True, use_cache=False, torch_dtype="float16", bos_token="<s>")
            | dict(pad_token="<pad>", unk_token="<unk>", auto_map={"AutoModel": "x"}),
        ),
        ("gpt_neox", dict(rope_theta=1000.0, partial_rotary_factor=0.25)),
        ("gpt2", dict(n_ctx=1024, summary_type="cls_index", predict_special_tokens=True)),
    )
    def test_keys_that_change_nothing(self, name, more):
        theirs = json.loads((GOLDEN / f"lm_{name}" / "config.json").read_text())
        self.assertEqual(read_config(theirs | more), read_config(theirs))


if __name__ == "__main__":
    absltest.main()
