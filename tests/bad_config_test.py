"""Bad fields of configurations, runs, tasks and the input pipeline: refused when they are made."""

import dataclasses
import json
import typing

import jax
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

from experiments.configs import kv_quick
from experiments.run.build import build
from gradmem_jax import GradMem, GradMemConfig, LlamaConfig, RopeScaling
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig, KVRetrievalSource
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.data.tasks import TASKS
from gradmem_jax.methods import METHODS
from gradmem_jax.training.optimizer import OptimizerConfig
from tests.bad_inputs import NEGATIVE, NO_FINITE, NO_INTEGER, NO_TEXT, compiles, examples, refused
from tests.small import small_writer

EXAMPLES = {name: small_writer(name).config for name in METHODS}
INSTANCES = {
    **{f"{name}_model": config for name, config in EXAMPLES.items()},
    **{f"{name}_lm": config.lm for name, config in EXAMPLES.items()},
    **{name: make() for name, make in TASKS.items()},
    "rope_scaling": RopeScaling(),
    "optimizer": OptimizerConfig(),
}
NO_BOOL = st.sampled_from([0, 1, "True", None, [], np.array([True]), 1.0])
BAD_VALUES = {int: NO_INTEGER | NEGATIVE, float: NO_FINITE, bool: NO_BOOL, str: NO_TEXT}
FREE_TEXT = ("data_dir", "tokenizer_path", "train_file", "validation_file", "test_file", "template")
FREE_TEXT += ("query", "pad_token")


def fields_to_break(instance: object) -> list[tuple[str, type]]:
    """Names and types of the fields, None aside."""
    hints = typing.get_type_hints(type(instance))
    found = []
    for field in dataclasses.fields(instance):
        kinds = [k for k in typing.get_args(hints[field.name]) if k in BAD_VALUES]
        kind = hints[field.name] if hints[field.name] in BAD_VALUES else (kinds or [None])[0]
        if kind in BAD_VALUES and typing.get_origin(hints[field.name]) is not tuple:
            found.append((field.name, kind))
    return found


class BadConfigTest(parameterized.TestCase):
    @parameterized.named_parameters(*((name, name) for name in INSTANCES))
    def test_every_field_refuses(self, name):
        instance = INSTANCES[name]

        @examples(60)
        @given(st.data())
        def fields(data):
            field, kind = data.draw(st.sampled_from(fields_to_break(instance)))
            bad = data.draw(BAD_VALUES[kind])
            if kind is str and isinstance(bad, str) and field in FREE_TEXT:
                return
            message = refused("fields", lambda: dataclasses.replace(instance, **{field: bad}))
            self.assertIn(field, message)

        fields()

    @parameterized.parameters(*METHODS)
    def test_every_method_refuses_the_wrong_language_model(self, name):
        right = EXAMPLES[name]
        for other in (*(config.lm for config in EXAMPLES.values()), None, "llama", {}):
            if getattr(other, "keeps", "") != right.lm.keeps:
                refused("fields", lambda other=other: dataclasses.replace(right, lm=other))

    def test_numbers_of_numpy_are_numbers(self):
        lm = LlamaConfig(vocab_size=np.int64(11), norm_epsilon=np.float32(0.5))
        self.assertEqual(lm, LlamaConfig(vocab_size=11, norm_epsilon=0.5))
        self.assertIs(type(lm.vocab_size), int)
        self.assertEqual(
            hash(GradMemConfig(lm=lm, write_lora_targets=["up"])),
            hash(GradMemConfig(lm=lm, write_lora_targets=("up",))),
        )

    def test_whole_numbers_are_floats_where_floats_are_declared(self):
        make = lambda number: (
            LlamaConfig(vocab_size=11, rope_base=number(10_000), rope_scaling=None),
            RopeScaling(factor=number(4)),
            OptimizerConfig(clip_norm=number(1), weight_decay=number(0)),
        )
        for whole, real in zip(make(int), make(float), strict=True):
            self.assertEqual(json.dumps(vars(whole)), json.dumps(vars(real)))

    def test_float64_needs_numbers_of_64_bits(self):
        for name in ("dtype", "param_dtype"):
            with self.assertRaisesRegex(ValueError, f'{name}=.*"jax_enable_x64", True'):
                LlamaConfig(vocab_size=11, **{name: "float64"})
            with jax.enable_x64(True):
                LlamaConfig(vocab_size=11, **{name: "float64"})

    def test_a_dtype_is_a_name(self):
        with self.assertRaisesRegex(ValueError, "dtype=.*; choose one of .*'bfloat16'"):
            LlamaConfig(vocab_size=11, dtype=jax.numpy.bfloat16)

    def test_models_refuse(self):
        for bad in (None, "gradmem", EXAMPLES["mamba"], EXAMPLES["rmt"]):
            refused("fields", lambda bad=bad: GradMem(bad))
        for bad in ("adam", 0.1, object()):
            refused("fields", lambda bad=bad: GradMem(EXAMPLES["gradmem"], bad))

    @parameterized.parameters(
        ("num_steps", (0, -1)),
        ("batch_size", (0, -8)),
        ("num_micro_batches", (0, -2, 3)),
        ("cpu_devices", (0, -2)),
        ("log_every", (0,)),
        ("save_every", (-1,)),
        ("num_eval_samples", (0,)),
        ("seed", (-1,)),
        ("stop_at_exact_match", (np.nan, -0.5, 1.5, np.inf)),
        ("best_metric", ("accuracy",)),
        ("final_split", ("dev", "")),
        ("method", ("nothing",)),
        ("task", ("nothing",)),
        ("frozen", (("^nothing/",), ("(",), (".*",))),
        ("log_to", ((3,), (None,))),
        ("final_num_write_steps", ((-1,), (0.5,), ("2",))),
        ("model.write_learning_rate", (0.0, -1.0, np.nan, np.inf)),
        ("model.clip_norm", (0.0, -1.0, np.nan)),
        ("model.num_write_steps", (-1,)),
        ("model.num_memory_tokens", (0, 5000)),
        ("lm.num_heads", (3, 0)),
        ("lm.dtype", ("int8",)),
        ("data.num_pairs", (0, 10**9)),
        ("data.noise", (-0.1, 1.0, np.nan)),
        ("optimizer.weight_decay", (-1.0, np.nan)),
        ("optimizer.learning_rate", (0.0, np.nan)),
        ("write_optimizer.name", ("nothing", "__name__", "adam", "chain", "safe_increment")),
        ("write_optimizer.name", ("softmax_cross_entropy", "EmptyState")),
        ("curriculum.exact_match", (np.nan, 2.0, None)),
        ("curriculum.num_pairs", ((0,), (2, 3), ("2",))),
        ("curriculum.max_context_tokens", ((-1,), (4, 8), (0,), ("2",))),
    )
    def test_a_run_refuses(self, name, values):
        for bad in values:
            config = kv_quick.get_config()
            config.update_from_flattened_dict({name: bad})
            refused("runs", lambda config=config: build(config))

    def test_fields_of_another_version(self):
        config = kv_quick.get_config()
        with config.unlocked():
            config.data.renamed_copies = 4
        with self.assertRaisesRegex(ValueError, "no field data.renamed_copies, only .*num_pairs"):
            build(config)

    @parameterized.parameters(
        ("gradmem", "rmt", "model.clip_norm"), ("mamba", "lact", "lm.conv_size")
    )
    def test_a_method_of_another_configuration(self, configured, method, field):
        config = kv_quick.get_config(configured)
        config.method = method
        message = f"method='{method}' has no .*{field}.* --config=.*kv_quick.py:{method}"
        with self.assertRaisesRegex(ValueError, message):
            build(config)

    def test_the_pipeline_refuses(self):
        source = KVRetrievalSource(KVRetrievalConfig(num_samples=20))

        @examples(40)
        @given(
            st.sampled_from(["batch_size", "shard_index", "num_shards", "num_threads", "prefetch"]),
            NO_INTEGER | NEGATIVE,
        )
        def numbers(name, bad):
            refused("pipeline", lambda: make_iterator(source, **({"batch_size": 4} | {name: bad})))

        @examples(40)
        @given(NO_INTEGER | NEGATIVE | st.integers(min_value=2**32))
        def seeds(bad):
            refused("pipeline", lambda: make_iterator(source, 4, shuffle_seed=bad))

        numbers(), seeds()
        for bad in (None, 3, {1, 2}):
            refused("pipeline", lambda bad=bad: make_iterator(bad, 4))
        for name in ("repeat", "pad_last"):
            refused("pipeline", lambda name=name: make_iterator(source, 4, **{name: "yes"}))
        refused("pipeline", lambda: make_iterator(source, 21))
        refused("pipeline", lambda: make_iterator(source, 4, shard_index=2, num_shards=2))
        refused("pipeline", lambda: make_iterator(source, 4, task="kv"))
        batch = next(make_iterator(source, np.int64(4), shuffle_seed=np.int64(3), num_threads=0))
        self.assertLen(batch["context_ids"], 4)

    def test_valid_runs_pass(self):
        before = compiles()
        self.assertNotEmpty(build(kv_quick.get_config()).stages)
        self.assertEqual(compiles(), before)


if __name__ == "__main__":
    absltest.main()
