"""Bad flags: `--config.x=...` as it is typed, and what the programs parse themselves."""

import pathlib
import tempfile

import numpy as np
from absl import flags
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from experiments.answers.answering import choose_contexts
from experiments.answers.contexts import Context, encode_context, read_contexts
from experiments.answers.open_model import open_model
from experiments.answers.write_traces import make_optimizer
from experiments.configs import kv_paper
from experiments.program.startup import integers
from experiments.run.build import build
from experiments.run.devices import find_devices
from experiments.speed.growth import parse_sweeps
from experiments.speed.setting import Setting
from experiments.sweeps.run_list import Run
from experiments.sweeps.sweep_file import select
from gradmem_jax.storage.checkpoint import restore_params
from gradmem_jax.storage.memory_file import Header, StoredContext
from gradmem_jax.tokenizers.text_tokenizer import character_tokenizer
from tests.bad_inputs import TRIED, examples, refused, sound

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "experiments" / "configs"
GOLDEN = ROOT / "tests" / "golden"
TYPED = st.sampled_from(
    [
        *("", " ", "abc", "-1", "0", "1.5", "nan", "inf", "-inf", "None", "True", "1e400", "é"),
        *("[1]", "(", "()", "('a',)", "(-1,)", "{}", "99999999999", str(2**63), "9" * 400, "\0"),
    ]
)
NO_NUMBERS = st.sampled_from(["", " ", "a", "-1", "1.5", "1e3", "²", "0x1", "1 2", "one", "nan"])


def parse(file, *arguments):
    """The configuration that a program makes of its flags."""
    words = ["train", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", str(file), flag_values=values, sys_argv=words)
    values(words)
    return values["config"].value


def flat(config, prefix=""):
    """Names and values of all fields."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class BadFlagsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

    @parameterized.parameters("kv_quick.py", "kv_quick.py:mamba2", "kv_quick.py:ttt_linear")
    def test_overrides(self, name):
        fields = dict(flat(parse(CONFIGS / name)))

        @examples(150)
        @given(st.sampled_from(sorted(fields)), TYPED)
        def values(field, text):
            try:
                config = parse(CONFIGS / name, f"--config.{field}={text}")
            except flags.Error as error:
                TRIED["overrides"] += 1
                self.assertIn(field, str(error))
                return
            sound("overrides", lambda: find_devices(build(config)))

        values()
        numbers = [field for field, value in fields.items() if type(value) in (int, float)]

        @examples(60)
        @given(st.sampled_from(numbers), st.sampled_from(["", "abc", "None x", "[1]", "(", "{}"]))
        def no_numbers(field, text):
            TRIED["overrides"] += 1
            with self.assertRaisesRegex(flags.Error, field):
                parse(CONFIGS / name, f"--config.{field}={text}")

        no_numbers()
        for bad in ("--config.no_such_field=1", "--config.lm.no_such_field=1", "--config.lm=3"):
            TRIED["overrides"] += 1
            with self.assertRaises((flags.Error, KeyError, AttributeError, TypeError)):
                parse(CONFIGS / name, bad)

    def test_whole_numbers(self):
        @examples(40)
        @given(NO_NUMBERS, st.booleans())
        def numbers(bad, more):
            values = ["1", bad] if more else [bad]
            self.assertIn("--k=", refused("flags", lambda: integers("k", values)))

        @examples(60)
        @given(st.sampled_from(["write_steps", "batch_size", "nothing", ""]), NO_NUMBERS)
        def sweeps(name, bad):
            for text in (f"{name}={bad}", f"{name}=1,{bad}", f"{name}", f"={bad}", f"{name}=1"):
                refused("flags", lambda text=text: parse_sweeps([text]))

        numbers(), sweeps()
        refused("flags", lambda: integers("k", []))

    def test_rows_and_optimizers(self):
        @examples(80)
        @given(st.text("n8k_2m-x. ", max_size=8) | st.text(max_size=8))
        def rows(text):
            sound("flags", lambda: kv_paper.ARGUMENTS.parse(text))

        @examples(80)
        @given(st.text("adamsg:0123.e-", max_size=10) | st.text(max_size=8))
        def optimizers(text):
            sound("flags", lambda: make_optimizer(text, np.ones((3, 2))))

        rows(), optimizers()
        for bad in ("", "n", "n8_", "n8_n8", "x_n8", "k2", "n8__k2", "N8", "n-8"):
            refused("flags", lambda bad=bad: kv_paper.ARGUMENTS.parse(bad))
        for bad in ("", "adam", "adam:", "adam:-1", "sgd:nan", "sgd:1e999", "adam:0", "rms:1"):
            refused("flags", lambda bad=bad: make_optimizer(bad, np.ones((3, 2))))

    def test_sizes_of_benchmarks(self):
        sizes = ("batch_size", "context_tokens", "query_tokens", "num_memory_tokens", "num_layers")
        sizes += ("width", "num_heads", "vocab_size", "queries_per_context")
        chosen = ("micro_batches", "cpu_devices")  # if they are -1

        @examples(80)
        @given(st.sampled_from(sizes), st.sampled_from([0, -1, None, 1.5, "8", True, 2**63]))
        def values(name, bad):
            refused("flags", lambda: Setting(**{name: bad}))

        @examples(20)
        @given(st.sampled_from(chosen), st.sampled_from([0, -2, None, 1.5, "8", True, 2**63]))
        def counts(name, bad):
            refused("flags", lambda: Setting(**{name: bad}))

        values(), counts()
        for bad in ({"dtype": "int8"}, {"remat": "all"}, {"repeats": -1}, {"write_steps": -1}):
            refused("flags", lambda bad=bad: Setting(**bad))

    def test_workers_and_checkpoints(self):
        runs = [Run("a", "kv_quick.py"), Run("b", "kv_quick.py")]
        for index, count in ((-1, 1), (1, 1), (2, 2), (0, 0), (0, -1)):
            refused("flags", lambda i=index, n=count: select(runs, i, n))
        for bad in ("(", "[", "*", "no such run", "\\"):
            refused("flags", lambda bad=bad: select(runs, 0, 1, bad))
        (self.folder / "checkpoints").mkdir()
        for bad in ("", "bset", "-1", "1.5", "²", "9" * 30, "None"):
            refused("flags", lambda bad=bad: restore_params(self.folder / "checkpoints", bad))

    def test_contexts(self):
        (self.folder / "empty.txt").write_text("")
        (self.folder / "blank.txt").write_text(" \n")
        (self.folder / "bytes.txt").write_bytes(b"\xff\xfe\x00")
        for bad in ("", "none.txt", "no*.txt", "[", ".", "empty.txt", "blank.txt", "bytes.txt"):
            path = bad and str(self.folder / bad)
            refused("flags", lambda path=path: read_contexts([path]))
        refused("flags", lambda: read_contexts([]))
        lines = self.folder / "contexts.jsonl"

        @examples(60)
        @given(
            st.sampled_from(
                ["{", "3", "[]", "null", "{}", '{"context": 3}', '{"context": null}', "\x00", "a"]
                + ['{"context": ""}', '{"context": " "}', '{"text": "a"}', "NaN", '"context"']
            ),
            st.booleans(),
        )
        def json_lines(bad, more):
            lines.write_text('{"context": "good"}\n' * more + bad + "\n")
            refused("flags", lambda: read_contexts([str(lines)]))

        json_lines()
        tokenizer = character_tokenizer(["abc"])
        encode = lambda text, **options: encode_context(
            Context("x", text), tokenizer, pad_id=tokenizer.pad_id, limit=4, **options
        )
        for text, options in (
            *(("", {}), ("abcab", {}), ("<pad>", {})),
            *(("abc", {"segment_tokens": bad}) for bad in (0, -1, 5, 2**40)),
        ):
            refused("flags", lambda text=text, o=options: encode(text, **o))
        header = Header(None, {}, (StoredContext("a"),), {}, ())
        for bad in ("", "b", "[", "A"):
            refused("flags", lambda bad=bad: choose_contexts("file", header, bad))

    def test_models_to_write_with(self):
        model = str(GOLDEN / "lm_llama")
        for path in ("", "none", "\0", str(GOLDEN), str(ROOT / "README.md")):
            refused("flags", lambda path=path: open_model(path, {}))
        for options in (
            *({"write_learning_rate": bad} for bad in (0.0, -1.0, np.nan, np.inf)),
            *({"num_memory_tokens": bad} for bad in (0, -1, 10**9)),
            *({"write_optimizer": bad} for bad in ("rms", "", None)),
            *({"checkpoint_name": "best"}, {"nothing": 1}, {}),
        ):
            refused("flags", lambda options=options: open_model(model, options))


if __name__ == "__main__":
    absltest.main()
