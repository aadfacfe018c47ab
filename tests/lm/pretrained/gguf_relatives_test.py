"""Llama's relatives in GGUF files, named and laid out as llama.cpp's converter does it."""

import dataclasses
import json
import pathlib

import gguf
import jax
import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file

from gradmem_jax.lm.pretrained.load import load_config, load_pretrained
from tests.lm.pretrained.gguf_file_test import pair_neighbours

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
ARCHITECTURES = {
    "lm_llama_bias": "llama",
    "lm_mistral": "llama",
    "lm_qwen2": "qwen2",
    "lm_qwen3": "qwen3",
    "lm_gemma2": "gemma2",
    "lm_gemma3": "gemma3",
    "lm_olmo2": "olmo2",
    "lm_smollm3": "smollm3",
    "lm_phi3": "phi3",
}
# What llama.cpp has no key for, or a fixed rule: fields of ours that differ from the original's.
DIFFERENT = {
    "lm_llama_bias": dict(rope_scaling=None),
    "lm_qwen2": dict(window=None, window_layers=()),
    "lm_gemma2": dict(query_scalar=None),
    "lm_gemma3": dict(query_scalar=None, window_layers=()),
    "lm_smollm3": dict(no_rope_layers=()),
}


def write_gguf(path, name, **changes):
    """Writes a golden model of transformers; a key that is None is left out."""
    kind = ARCHITECTURES[name]
    theirs = json.loads((GOLDEN / name / "config.json").read_text())
    rope = theirs["rope_parameters"]
    near = rope.get("sliding_attention")
    rope = rope.get("full_attention", rope)
    heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
    head_width = theirs.get("head_dim") or width // heads
    rotated = int(head_width * rope.get("partial_rotary_factor", 1.0))
    keys = {
        "block_count": theirs["num_hidden_layers"],
        "context_length": theirs["max_position_embeddings"],
        "embedding_length": width,
        "feed_forward_length": theirs["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": theirs["num_key_value_heads"],
        "attention.key_length": head_width,
        "attention.value_length": head_width,
        "attention.layer_norm_rms_epsilon": theirs["rms_norm_eps"],
        "attention.sliding_window": None if kind == "qwen2" else theirs.get("sliding_window"),
        "attn_logit_softcapping": theirs.get("attn_logit_softcapping"),
        "final_logit_softcapping": theirs.get("final_logit_softcapping"),
        "rope.dimension_count": rotated,
        "rope.freq_base": rope["rope_theta"],
        "rope.freq_base_swa": near and near["rope_theta"],
    }
    factors = {}
    if rope["rope_type"] in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] in ("yarn", "longrope"):
        original = rope["original_max_position_embeddings"]
        keys["rope.scaling.original_context_length"] = original
    if rope["rope_type"] == "longrope":
        ratio = theirs["max_position_embeddings"] / original
        keys["rope.scaling.attn_factor"] = (1 + np.log(ratio) / np.log(original)) ** 0.5
        factors = {f"rope_factors_{x}.weight": rope[f"{x}_factor"] for x in ("long", "short")}
    writer = gguf.GGUFWriter(path, kind)
    for key, value in (keys | changes).items():
        if isinstance(value, str):
            writer.add_string(f"{kind}.{key}", value)
        elif isinstance(value, list):
            writer.add_array(f"{kind}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{kind}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{kind}.{key}", value)
    for key, x in factors.items():
        writer.add_tensor(key, np.array(x, np.float32))
    names = gguf.get_tensor_name_map(
        next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == kind),
        theirs["num_hidden_layers"],
    )
    for key, x in load_file(GOLDEN / name / "model.safetensors").items():
        if kind in ("llama", "smollm3"):
            for part, count in (("q_proj", heads), ("k_proj", theirs["num_key_value_heads"])):
                if part in key:
                    x = pair_neighbours(x.reshape(len(x), -1), count).reshape(x.shape)
        if kind.startswith("gemma") and key.endswith("norm.weight"):
            x = x + np.float32(1)
        writer.add_tensor(names.get_name(key, (".weight", ".bias")), x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class GGUFRelativesTest(parameterized.TestCase):
    def path(self):
        return pathlib.Path(self.create_tempdir().full_path) / "model.gguf"

    @parameterized.parameters(*ARCHITECTURES)
    def test_they_are_the_originals(self, name):
        want = load_pretrained(GOLDEN / name, **DIFFERENT.get(name, {}))
        got = load_pretrained(write_gguf(self.path(), name))
        self.assertEqual(got.config.head_size, want.config.head_size)
        for field in dataclasses.fields(want.config):
            one, two = (getattr(x.config, field.name) for x in (got, want))
            if field.name in ("norm_epsilon", "init_std", "head_width"):  # rounded; not said; None
                continue
            if field.name == "rope_scaling" and one is not None:
                self.assertAlmostEqual(one.turned_scale, two.turned_scale, places=6)
                two = dataclasses.replace(two, attention_factor=one.attention_factor)
            self.assertEqual(one, two, field.name)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), got.params, want.params
        )

    @parameterized.parameters(
        (
            "lm_gemma2",
            {"attention.sliding_window": None, "context_length": 5000},
            dict(window=4096, window_layers=(0,), window_rope_base=None, logit_softcap=3.0),
        ),
        (
            "lm_gemma3",
            {"attention.sliding_window": None, "final_logit_softcapping": 9.0},
            dict(window=None, window_rope_base=None, logit_softcap=9.0),
        ),
        (
            "lm_gemma3",
            {"attention.sliding_window_pattern": [False, True]},
            dict(window=8, window_layers=(1,), window_rope_base=100.0, logit_softcap=None),
        ),
        (
            "lm_gemma3",
            {"attention.sliding_window": 64, "rope.freq_base_swa": None},
            dict(window=64, window_layers=(), window_rope_base=10_000.0, rope_base=1000.0),
        ),
        ("lm_mistral", {"attention.sliding_window": 64}, dict(window=None, logit_softcap=None)),
        ("lm_mistral", {"attention.sliding_window": 63}, dict(window=63, window_layers=())),
    )
    def test_windows(self, name, changes, want):
        config = load_config(write_gguf(self.path(), name, **changes))
        self.assertEqual({field: getattr(config, field) for field in want}, want)

    @parameterized.parameters(
        ("lm_qwen2", {"attention.sliding_window": 8}, "qwen2.attention.sliding_window=8"),
        ("lm_qwen3", {"attention.scale": 0.5}, "'qwen3.attention.scale': 0.5"),
        ("lm_gemma2", {"rope.scaling.attn_factor": 2.0}, "attn_factor=2.0 is not supported"),
        ("lm_qwen3", {"expert_count": 8}, "qwen3.expert_count=8 is not supported.*experts"),
        ("lm_qwen2", {"rope.scaling.type": "longrope"}, "lacks rope_factors_long.weight"),
    )
    def test_refusals(self, name, changes, message):
        with self.assertRaisesRegex(ValueError, message):
            load_config(write_gguf(self.path(), name, **changes))


if __name__ == "__main__":
    absltest.main()
