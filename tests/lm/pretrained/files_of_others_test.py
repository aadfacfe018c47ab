"""Checkpoints as people have them: in parts, under prefixes, pointers, tokens without a row."""

import dataclasses
import json
import pathlib
import shutil

import gguf
import numpy as np
import tokenizers
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file, save_file
from tokenizers import processors

from gradmem_jax.lm.pretrained.load import load_config, load_pretrained, save_pretrained
from gradmem_jax.tokenizers.text_tokenizer import load_tokenizer, word_tokenizer

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def write_part(path, index, count, names):
    """One of the files of a tiny Llama in GGUF, as gguf-split makes them."""
    shapes = {"token_embd": (6, 8), "output_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= {"blk.0.attn_norm": (8,), "blk.0.ffn_down": (8, 4)}
    shapes |= {f"blk.0.ffn_{name}": (4, 8) for name in ("gate", "up")}
    shapes |= {f"blk.0.attn_{name}": (8, 8) for name in ("q", "k", "v", "output")}
    writer = gguf.GGUFWriter(path, "llama")
    if index == 0:
        writer.add_embedding_length(8)
        writer.add_block_count(1)
        writer.add_head_count(2)
        writer.add_feed_forward_length(4)
        writer.add_context_length(16)
        writer.add_layer_norm_rms_eps(1e-5)
    writer.add_uint16("split.no", index)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", len(shapes))
    for name in sorted(shapes)[names]:
        values = np.random.default_rng(len(name)).normal(size=shapes[name]).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class FilesOfOthersTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path) / "model"

    def copy(self, name="lm_llama"):
        shutil.copytree(GOLDEN / name, self.folder)
        return self.folder

    @parameterized.parameters("_orig_mod.", "module.", "base_model.model.", "module._orig_mod.")
    def test_prefixes_of_training_programs(self, prefix):
        want = load_pretrained(GOLDEN / "lm_llama").params
        path = self.copy() / "model.safetensors"
        save_file({prefix + name: x for name, x in load_file(path).items()}, path)
        np.testing.assert_array_equal(
            load_pretrained(self.folder).params["embedding"], want["embedding"]
        )

    def test_other_prefixes_are_named_in_a_line(self):
        path = self.copy() / "model.safetensors"
        save_file({f"strange.{name}": x for name, x in load_file(path).items()}, path)
        with self.assertRaisesRegex(ValueError, "strange") as refusal:
            load_pretrained(self.folder)
        self.assertLessEqual(len(str(refusal.exception)), 2100)

    @parameterized.parameters(
        "config.json", "model.safetensors", "tokenizer.json", "x.gguf", "x.bin"
    )
    def test_pointers_of_git_lfs(self, name):
        folder = self.copy()
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
        (folder / name).write_text(pointer)
        path = folder / name if name.startswith("x") else folder
        with self.assertRaisesRegex(ValueError, f"{name} is no .* a pointer of Git LFS .*git lfs"):
            load_pretrained(path)

    def test_gguf_in_parts(self):
        self.folder.mkdir()
        write_part(self.folder / "whole.gguf", 0, 1, slice(None))
        want = load_pretrained(self.folder / "whole.gguf").params
        (self.folder / "whole.gguf").unlink()
        names = [f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
        for i, part in enumerate((slice(0, 4), slice(4, None))):
            write_part(self.folder / names[i], i, 2, part)
        for path in (self.folder, *(self.folder / name for name in names)):
            got = load_pretrained(path).params
            np.testing.assert_array_equal(got["embedding"], want["embedding"])
        write_part(self.folder / names[1], 1, 2, slice(5, None))
        with self.assertRaisesRegex(ValueError, "are not those of one model"):
            load_pretrained(self.folder)
        shutil.copy(self.folder / names[0], self.folder / "other.gguf")
        with self.assertRaisesRegex(ValueError, "other.gguf is one of 2 parts; name it as gguf-"):
            load_config(self.folder / "other.gguf")
        (self.folder / names[1]).unlink()
        with self.assertRaisesRegex(ValueError, "and .'m-00002-of-00002.gguf'. are not beside it"):
            load_config(self.folder / names[0])

    def test_added_tokens_without_a_row(self):
        folder = self.copy()
        rows = load_config(folder).vocab_size
        words = word_tokenizer([" ".join(f"w{i}" for i in range(rows - 3))])
        backend = tokenizers.Tokenizer.from_str(words.backend.to_str())
        backend.add_special_tokens(["<pad>", "<image>"])
        backend.save(str(folder / "tokenizer.json"))
        special = {"pad_token": "<pad>", "eos_token": "[END]"}
        (folder / "tokenizer_config.json").write_text(json.dumps(special))
        own = load_pretrained(folder).tokenizer
        named = load_pretrained(folder, tokenizer=folder, pad_token="[PAD]").tokenizer
        for tokenizer, pad in ((own, "[UNK]"), (load_tokenizer(folder), "[UNK]"), (named, "[PAD]")):
            self.assertEqual(tokenizer.vocab_size, rows)
            self.assertEqual(tokenizer.backend.id_to_token(tokenizer.pad_id), pad)
            self.assertLess(tokenizer.encode("w1 <pad> w2").max(), rows)
        backend.add_tokens(["more"])
        backend.model = type(backend.model)(
            {**backend.get_vocab(), "x": rows + 9}, unk_token="[UNK]"
        )
        backend.save(str(folder / "tokenizer.json"))
        with self.assertRaisesRegex(ValueError, f"ids, the model {rows}"):
            load_pretrained(folder)

    def test_saved_again_it_begins_as_before(self):
        folder = self.copy()
        words = word_tokenizer(["a b"])
        words.save(folder / "tokenizer.json")
        special = {"bos_token": "[UNK]", "add_bos_token": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(special))
        save_pretrained(folder.with_name("again"), load_pretrained(folder))
        again = load_pretrained(folder.with_name("again")).tokenizer
        self.assertEqual(again.begin_id, words.backend.token_to_id("[UNK]"))

    @parameterized.parameters(True, False)
    def test_saved_again_it_adds_no_more_than_before(self, by_its_files):
        folder = self.copy()
        words = word_tokenizer(["a b"])
        words.backend.post_processor = processors.TemplateProcessing(
            single="[UNK] $A", special_tokens=[("[UNK]", words.backend.token_to_id("[UNK]"))]
        )
        words.save(folder / "tokenizer.json")
        if by_its_files:
            special = {"bos_token": "[UNK]", "add_bos_token": False}
            (folder / "tokenizer_config.json").write_text(json.dumps(special))
        own = load_pretrained(folder)
        self.assertEqual(own.tokenizer.begin_id is None, by_its_files)
        without = dataclasses.replace(own.tokenizer, begin_id=None)
        save_pretrained(folder.with_name("again"), own._replace(tokenizer=without))
        self.assertIsNone(load_tokenizer(folder.with_name("again")).begin_id)


if __name__ == "__main__":
    absltest.main()
