"""llama2.c: stories260K, its tokenizer against a plain one, files that are refused."""

import pathlib
import shutil
import struct
import unittest

import jax
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import FullContext, FullContextConfig, LlamaConfig, generate
from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.pretrained.load import load_pretrained, save_pretrained
from tests.shared_data import data_dir
from tests.small import numpy_params

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do."
)


def stories():
    return data_dir() / "stories260K"


def greedy_text(pretrained, prompt, count):
    """The prompt and what a model adds to it."""
    tokenizer = pretrained.tokenizer
    ids = np.array([[tokenizer.end_id, *tokenizer.encode(prompt)]], np.int32)
    model = FullContext(FullContextConfig(lm=pretrained.config, pad_id=tokenizer.pad_id))
    params = {"lm": pretrained.params}
    memory, _ = jax.jit(model.write_memory)(params, ids[:, :-1])
    added = generate(model, params, memory, ids[:, -1:], count)
    return tokenizer.decode([*ids[0], *np.asarray(added)[0]])


def write_model(path, config, params):
    """Writes the format, by another way than the reader reads it."""
    c = config
    header = (c.width, c.mlp_size, c.num_layers, c.num_heads, c.kv_heads)
    vocab_size = c.vocab_size if c.tied_head else -c.vocab_size
    layers = [params[f"layers_{i}"] for i in range(c.num_layers)]

    def turned(kernel):  # [d, H, Dh] to [H * Dh, d], components i and i + Dh / 2 side by side
        first, second = np.split(kernel, 2, axis=-1)
        pairs = np.stack([first, second], axis=-1).reshape(kernel.shape)
        return pairs.reshape(c.width, -1).T

    attention = [layer["attention"] for layer in layers]
    parts = [params["embedding"], *(layer["attention_norm"]["scale"] for layer in layers)]
    parts += [turned(a["query"]["kernel"]) for a in attention]
    parts += [turned(a["key"]["kernel"]) for a in attention]
    parts += [a["value"]["kernel"].reshape(c.width, -1).T for a in attention]
    parts += [a["output"]["kernel"].reshape(-1, c.width).T for a in attention]
    parts += [layer["mlp_norm"]["scale"] for layer in layers]
    for name in ("gate", "down", "up"):
        parts += [layer[name]["kernel"].T for layer in layers]
    parts += [params["final_norm"]["scale"], np.full(c.max_positions * c.head_size, np.nan)]
    parts += [] if c.tied_head else [params["head"].T]
    flat = np.concatenate([np.ravel(part) for part in parts]).astype("<f4")
    path.write_bytes(struct.pack("<7i", *header, vocab_size, c.max_positions) + flat.tobytes())


class Llama2cTest(parameterized.TestCase):
    @parameterized.parameters(True, False)
    def test_every_tensor_is_in_its_place(self, tied_head):
        config = LlamaConfig(
            vocab_size=7,
            width=16,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            mlp_width=12,
            max_positions=9,
            rope_base=10_000.0,
            tied_head=tied_head,
        )
        init = lambda: make_lm(config).init(
            jax.random.key(0), np.zeros((1, 1), np.int32), method="everything"
        )
        params = numpy_params(init)["params"]
        params = jax.tree.map(lambda x: np.random.default_rng(0).normal(size=x.shape), params)
        path = pathlib.Path(self.create_tempdir().full_path) / "model.bin"
        write_model(path, config, params)
        got = load_pretrained(path)
        self.assertEqual(got.config, config)
        self.assertIsNone(got.tokenizer)
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.float32(y)), got[1], params)
        path.write_bytes(path.read_bytes()[:-4])
        with self.assertRaisesRegex(ValueError, "damaged: it has .* bytes instead of"):
            load_pretrained(path)
        for content in (b"", b"ak42" + bytes(300), b"PK\x03\x04" + bytes(30)):
            path.write_bytes(content)
            with self.assertRaisesRegex(ValueError, "no model of llama2.c in its first format"):
                load_pretrained(path)

    def test_story(self):
        pretrained = load_pretrained(stories() / "stories260K.bin")
        self.assertEqual(greedy_text(pretrained, "Once upon a time", 130)[: len(STORY)], STORY)

    def test_which_tokenizer(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        for name in ("stories260K.bin", "tok512.bin"):
            shutil.copy(stories() / name, folder / name)
        content = (folder / "tok512.bin").read_bytes()
        (folder / "tok9.bin").write_bytes(content)
        with self.assertRaisesRegex(ValueError, "'tok512.bin', 'tok9.bin'.* not one tokenizer"):
            load_pretrained(folder / "stories260K.bin")
        named = load_pretrained(folder / "stories260K.bin", tokenizer=folder / "tok512.bin")
        self.assertEqual(named.tokenizer.vocab_size, 512)
        longer = struct.pack("<fi", -1e3, 4) + b"xqzj"
        (folder / "tok9.bin").write_bytes(content + longer)
        with self.assertRaisesRegex(ValueError, "tokenizer has 513 ids, the model 512"):
            load_pretrained(folder / "stories260K.bin", tokenizer=folder / "tok9.bin")

    def test_transformers_agrees(self):
        path = stories() / "stories260K.bin"
        try:
            import torch
            import transformers
        except ImportError as error:
            raise unittest.SkipTest("torch and transformers are not installed") from error
        pretrained = load_pretrained(path)
        folder = self.create_tempdir().full_path
        save_pretrained(folder, pretrained)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = np.array([[1, *pretrained.tokenizer.encode(STORY)]])
        self.assertEqual(tokenizer(STORY, add_special_tokens=False)["input_ids"], list(ids[0, 1:]))
        with torch.no_grad():
            want = model(torch.from_numpy(ids)).logits.numpy()
        lm = make_lm(pretrained.config)
        got = lm.apply({"params": pretrained.params}, ids, method="everything")
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        made = model.generate(torch.from_numpy(ids[:, :6]), max_new_tokens=60, do_sample=False)
        self.assertEqual(
            tokenizer.decode(made[0], skip_special_tokens=True),
            greedy_text(pretrained, pretrained.tokenizer.decode(ids[0, :6]), 60),
        )


if __name__ == "__main__":
    absltest.main()
