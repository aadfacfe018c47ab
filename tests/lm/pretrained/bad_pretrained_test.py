"""Bad arguments, directories and files of pretrained models: refused before any compile."""

import json
import pathlib
import shutil
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gradmem_jax import LlamaConfig, Pretrained, load_pretrained, save_pretrained
from gradmem_jax.lm.pretrained.hugging_face_families import FAMILIES
from gradmem_jax.lm.pretrained.load import load_config
from gradmem_jax.tokenizers.text_tokenizer import (
    character_tokenizer,
    load_tokenizer,
    word_tokenizer,
)
from tests.bad_inputs import NEGATIVE, NO_FINITE, NO_INTEGER, examples, refused, sound
from tests.lm.pretrained.gguf_file_test import write_gguf
from tests.lm.pretrained.llama2c_test import write_model

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
NAMES = ("lm_llama", "lm_llama3", "lm_gpt2", "lm_gpt_neox", "lm_mamba")
# What JSON can hold in place of a number, a text, a truth value or an object.
NO_JSON_NUMBER = st.sampled_from(["", "8", "none", [8], {}, {"a": 8}, True, float("nan"), 1e999])
NO_JSON_SIZE = NO_JSON_NUMBER | NEGATIVE | st.sampled_from([0, 1.5, 10**400])
NO_JSON_TEXT = st.sampled_from([0, 1.5, True, [], {}, ["llama"], "nothing", float("nan")])
NO_JSON_BOOL = st.sampled_from([0, 1, "true", [], {}, 0.5, "False"])
NO_JSON_OBJECT = st.sampled_from([0, True, "llama3", [], [{"factor": 8.0}], 1.5])
NO_SCALING = NO_JSON_OBJECT.filter(bool) | st.fixed_dictionaries(
    {
        "rope_type": st.sampled_from(["mrope", "", None, 3, [], {}]),
        "factor": st.just(8.0),
    }
)
ROTARY = ("rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct", "partial_rotary_factor")
NO_PATH = st.sampled_from([None, 3, 1.5, True, [], {}, object(), b"model", "", "no/where", "\0"])


def config_to_break(name):
    """Keys of a golden model's config.json with what they must not hold."""
    theirs = json.loads((GOLDEN / name / "config.json").read_text())
    family = next(family for family in FAMILIES if family.model_type == theirs["model_type"])
    optional = ("head_dim", "n_inner", "num_key_value_heads", "rope_scaling", "time_step_rank")
    kinds = {"model_type": NO_JSON_TEXT, "architectures": NO_JSON_TEXT.filter(bool)}
    for key, absent in family.fields.values():
        if key in optional:
            continue
        number = isinstance(absent, float)
        kinds[key] = NO_JSON_NUMBER | st.just(-1) if number else NO_JSON_SIZE
        if isinstance(absent, bool):
            kinds[key] = NO_JSON_BOOL
    for key in set(optional) & {key for key, _ in family.fields.values()}:
        kinds[key] = NO_JSON_SIZE
    if "rope_scaling" in kinds:
        kinds |= {"rope_scaling": NO_SCALING, "rope_parameters": NO_SCALING}
    kinds |= dict.fromkeys(family.fixed, st.sampled_from(["relu", 3, [], {}, "yes"]))
    return theirs, kinds


class BadPretrainedTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

    def copy(self, name="lm_llama"):
        folder = self.folder / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(GOLDEN / name, folder)
        return folder

    def test_paths(self):
        @examples(40)
        @given(NO_PATH, st.sampled_from([load_pretrained, load_config, load_tokenizer]))
        def paths(bad, load):
            refused("pretrained", lambda: load(bad))

        paths()
        (self.folder / "text").write_text("no model")
        for name in ("text.gguf", "text.bin", "text.safetensors", "text.json", "config.json"):
            (self.folder / name).write_text("no model")
            refused("pretrained", lambda name=name: load_pretrained(self.folder / name))
        (self.folder / "config.json").unlink()
        (self.folder / "config.json").mkdir()
        refused("pretrained", lambda: load_pretrained(self.folder))
        for name in ("none.gguf", "none.bin"):
            (self.folder / name).mkdir()
            refused("pretrained", lambda name=name: load_pretrained(self.folder / name))

    @parameterized.parameters(*NAMES)
    def test_config_values(self, name):
        folder, (theirs, kinds) = self.copy(name), config_to_break(name)

        @examples(120)
        @given(st.data())
        def values(data):
            key = data.draw(st.sampled_from(sorted(kinds)))
            bad = data.draw(kinds[key])
            changed = dict(theirs)
            if key in ROTARY:  # the newer group stands in their place
                changed.pop("rope_parameters", None)
            (folder / "config.json").write_text(json.dumps(changed | {key: bad}))
            refused("pretrained", lambda: load_pretrained(folder))

        values()

    @parameterized.parameters("rope_scaling", "rope_parameters")
    def test_rope_scaling_values(self, group):
        folder, (theirs, _) = self.copy("lm_llama3"), config_to_break("lm_llama3")
        good = dict(theirs.pop("rope_parameters"))
        sizes = ["factor", "high_freq_factor", "low_freq_factor"]

        @examples(60)
        @given(
            st.sampled_from([*sizes, "original_max_position_embeddings"]),
            NO_JSON_NUMBER | st.sampled_from([0, -1, None]),
        )
        def values(key, bad):
            changed = json.dumps(theirs | {group: good | {key: bad}})
            (folder / "config.json").write_text(changed)
            refused("pretrained", lambda: load_pretrained(folder))

        values()

    def test_config_files(self):
        folder = self.copy()

        @examples(40)
        @given(st.sampled_from([b"", b"[]", b"3", b"null", b"{", b'{"a": 1}', b"\xff\xfe", b"NaN"]))
        def files(content):
            (folder / "config.json").write_bytes(content)
            refused("pretrained", lambda: load_pretrained(folder))

        files()

    def test_indices_of_several_files(self):
        folder = self.copy()

        @examples(40)
        @given(
            st.sampled_from(
                [3, [], "a", None, {"x": 3}, {"x": None}, {"x": []}, {"x": "no"}, {"x": ""}, {}]
            )
        )
        def indices(weight_map):
            index = folder / "model.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": weight_map}))
            refused("pretrained", lambda: load_pretrained(folder))

        indices()

    def test_tensors(self):
        folder = self.copy()
        tensors = load_file(folder / "model.safetensors")

        @examples(60)
        @given(st.sampled_from(sorted(tensors)), st.data())
        def change(name, data):
            x = tensors[name]
            bad = data.draw(
                st.sampled_from(
                    [x[None], x[:-1], x.ravel()[:0], x.astype(np.int32), x.astype(bool), None]
                )
            )
            changed = {key: value for key, value in tensors.items() if key != name}
            changed |= {name: bad} if bad is not None else {}
            save_file(changed, folder / "model.safetensors")
            refused("pretrained", lambda: load_pretrained(folder))

        change()

    @parameterized.parameters("safetensors", "gguf", "bin")
    def test_files_that_are_cut_or_changed(self, suffix):
        if suffix == "safetensors":
            place = self.copy()
            file = place / "model.safetensors"
        elif suffix == "gguf":
            place = file = write_gguf(self.folder / "model.gguf")
        else:
            place = file = self.folder / "model.bin"
            golden = load_pretrained(GOLDEN / "lm_llama")
            write_model(file, golden.config, golden.params)
        content = file.read_bytes()
        header = 24 if suffix == "bin" else 2000

        @examples(60)
        @given(st.integers(0, len(content) - 1))
        def cut(length):
            file.write_bytes(content[:length])
            refused("pretrained", lambda: load_pretrained(place))

        @examples(150)
        @given(st.integers(0, header - 1), st.integers(1, 255), st.integers(1, 8))
        def change(start, mask, length):
            changed = bytearray(content)
            for i in range(start, start + length):
                changed[i] ^= mask
            file.write_bytes(bytes(changed))
            sound("pretrained", lambda: load_pretrained(place))

        cut(), change()

    def test_arguments(self):
        folder = self.copy()

        @examples(60)
        @given(
            st.sampled_from(["vocab_size", "width", "num_layers", "num_heads", "max_positions"]),
            NO_INTEGER | NEGATIVE | st.just(0),
        )
        def sizes(name, bad):
            refused("pretrained", lambda: load_pretrained(folder, **{name: bad}))

        @examples(40)
        @given(st.sampled_from(["norm_epsilon", "rope_base"]), NO_FINITE | st.just(0.0))
        def numbers(name, bad):
            refused("pretrained", lambda: load_pretrained(folder, **{name: bad}))

        sizes(), numbers()
        others = [
            *({"dtype": bad} for bad in ("int8", "float8", np.float32, None, 3)),
            *({"param_dtype": bad} for bad in ("int8", "", None)),
            *({"rope_scaling": bad} for bad in (8.0, "llama3", {"factor": 8.0}, [])),
            *({"scan_layers": bad} for bad in (1, "yes", None)),
            *({"vocab_size": 7}, {"num_layers": 3}, {"width": 32}, {"remat": "all"}),
            *({"num_kv_heads": 3}, {"head_width": 5}, {"layers": 2}, {"": 1}),
        ]
        for changes in others:
            refused("pretrained", lambda changes=changes: load_pretrained(folder, **changes))

    def test_tokenizers(self):
        folder = self.copy()

        @examples(20)
        @given(NO_PATH.filter(lambda bad: bad is not None))
        def paths(bad):
            refused("pretrained", lambda: load_pretrained(folder, tokenizer=bad))

        paths()
        many = word_tokenizer([f"word{i}" for i in range(60)])
        many.save(folder / "tokenizer.json")
        self.assertIn("63 ids", refused("pretrained", lambda: load_pretrained(folder)))
        character_tokenizer(["abc"]).save(folder / "tokenizer.json")
        content = (folder / "tokenizer.json").read_bytes()
        config = folder / "tokenizer_config.json"
        for bad in (b"[]", b"3", b"{", b'{"eos_token": 3}', b'{"eos_token": "no"}', b"\xff"):
            config.write_bytes(bad)
            refused("pretrained", lambda: load_pretrained(folder))
        config.unlink()
        load_pretrained(folder)

        @examples(30)
        @given(st.integers(0, len(content) - 2))
        def cut(length):
            (folder / "tokenizer.json").write_bytes(content[:length])
            refused("pretrained", lambda: load_pretrained(folder))

        cut()

    def test_save_refuses(self):
        good = load_pretrained(GOLDEN / "lm_llama")
        wider = LlamaConfig(vocab_size=48, width=24, num_heads=4)
        bads = [
            *(Pretrained(bad, good.params) for bad in (None, "llama", {}, wider)),
            *(Pretrained(good.config, bad) for bad in (None, {}, {"embedding": 1.0}, "params")),
        ]
        for bad in (*bads, None, 3, "model", good.params):
            refused("pretrained", lambda bad=bad: save_pretrained(self.folder / "new", bad))
        for bad in (None, 3, b"model"):
            refused("pretrained", lambda bad=bad: save_pretrained(bad, good))
        self.assertFalse((self.folder / "new").exists())

    def test_a_run_is_no_language_model(self):
        trained, exported = self.folder / "trained", self.folder / "exported"
        (trained / "checkpoints").mkdir(parents=True)
        exported.mkdir()
        (exported / "exported.json").write_text("{}")
        for folder in (trained, exported):
            with self.assertRaisesRegex(ValueError, "has no config.json and 0 .gguf files"):
                load_pretrained(folder)
            (folder / "config.json").write_text('{"model": {}, "data": {}, "num_steps": 8}')
            with self.assertRaisesRegex(ValueError, "config.json has no model_type: it is not"):
                load_pretrained(folder)


if __name__ == "__main__":
    absltest.main()
