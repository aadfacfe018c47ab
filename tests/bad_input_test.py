"""Bad arrays, memories, steps and options: refused by every function, before any compile."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

import gradmem_jax
from gradmem_jax.methods import METHODS
from gradmem_jax.storage.memory_file import StoredContext
from tests.bad_inputs import (
    CONTEXTS,
    NEGATIVE,
    NO_FINITE,
    NO_INTEGER,
    QUERIES,
    bad_ids,
    bad_memory,
    compiles,
    examples,
    longest,
    refused,
    written,
)

NAMES = tuple(METHODS)
BAD_STEPS = NO_INTEGER | NEGATIVE | st.integers(2**31, 2**70)
BAD_PARAMS = st.sampled_from([None, {}, [], "params", {"lm": {}}, {"lm": {"embedding": 1.0}}])
NO_KEY = st.sampled_from([0, "key", np.zeros(3), object(), [0, 1], np.zeros((2, 2), np.uint32)])
NO_MODEL = st.sampled_from([None, "gradmem", object(), 3])


def cut(params: dict) -> dict:
    """Parameters of a model of another vocabulary."""
    embedding = params["lm"]["embedding"]
    return params | {"lm": params["lm"] | {"embedding": embedding[:-1]}}


class BadInputTest(parameterized.TestCase):
    @parameterized.parameters(*NAMES)
    def test_write_refuses(self, name):
        model, params, memory = written(name)

        @examples(20)
        @given(bad_ids(CONTEXTS, longest(model)))
        def contexts(ids):
            refused("contexts", lambda: model.write_memory(params, ids))

        @examples(12)
        @given(bad_memory(memory))
        def memories(bad):
            refused("memories", lambda: model.write_memory(params, CONTEXTS, memory=bad))

        @examples(12)
        @given(BAD_STEPS)
        def steps(bad):
            refused("steps", lambda: model.write_memory(params, CONTEXTS, num_steps=bad))
            refused(
                "steps", lambda: model.write_memory(params, CONTEXTS, num_steps=0, max_steps=bad)
            )

        @examples(6)
        @given(BAD_PARAMS)
        def parameters(bad):
            refused("parameters", lambda: model.write_memory(bad, CONTEXTS))

        contexts(), memories(), steps(), parameters()
        refused("parameters", lambda: model.write_memory(cut(params), CONTEXTS))
        write = lambda k: model.write_memory(params, CONTEXTS, num_steps=k)
        message = refused("steps", lambda: jax.jit(write).lower(np.int32(1)))
        self.assertIn("max_steps", message)

    @parameterized.parameters(*NAMES)
    def test_read_refuses(self, name):
        model, params, memory = written(name)

        @examples(20)
        @given(bad_ids(QUERIES, longest(model)) | bad_ids(QUERIES[:, 0], longest(model)))
        def queries(ids):
            refused("queries", lambda: model.read_memory(params, memory, ids))

        @examples(12)
        @given(bad_memory(memory))
        def memories(bad):
            refused("memories", lambda: model.read_memory(params, bad, QUERIES))

        queries(), memories()
        refused("parameters", lambda: model.read_memory(cut(params), memory, QUERIES))
        refused("queries", lambda: model.read_memory(params, memory, QUERIES[:1]))

    def test_generate_refuses(self):
        model, params, memory = written("gradmem")
        call = lambda *ids, **options: gradmem_jax.generate(model, params, memory, *ids, **options)

        # Several stops may be given: [8] is a good one.
        no_stop = (NO_INTEGER | NEGATIVE).filter(lambda x: np.ndim(x) == 0)

        @examples(20)
        @given(BAD_STEPS | st.integers(38, 99) | st.just(0), NO_FINITE, no_stop)
        def numbers(count, temperature, stop_id):
            refused("generate", lambda: call(QUERIES, count))
            refused("generate", lambda: call(QUERIES, 2, temperature=temperature))
            refused("generate", lambda: call(QUERIES, 2, stop_id=stop_id))

        @examples(6)
        @given(NO_KEY, NO_MODEL)
        def objects(key, bad):
            refused("generate", lambda: call(QUERIES, 2, temperature=1.0, key=key))
            refused("generate", lambda: gradmem_jax.generate(bad, params, memory, QUERIES, 2))

        numbers(), objects()
        refused("generate", lambda: call(QUERIES, 2, temperature=1.0))
        refused("generate", lambda: call(QUERIES, 2, temperature=-0.5))
        for stop_id in (11, [], [8, 11], [8, -1], [8.5], [[8]], ["8"], np.array(["8"])):
            refused("generate", lambda stop_id=stop_id: call(QUERIES, 2, stop_id=stop_id))

    def test_write_context_and_reconstruct_refuse(self):
        model, params, memory = written("gradmem")
        segments = np.stack([CONTEXTS, CONTEXTS], axis=1)

        @examples(30)
        @given(bad_ids(segments, 40))
        def write(ids):
            refused("segments", lambda: gradmem_jax.write_context(model, params, ids))

        @examples(20)
        @given(bad_ids(CONTEXTS, 40))
        def read(ids):
            refused("reconstruct", lambda: gradmem_jax.reconstruct(model, params, memory, ids))

        @examples(12)
        @given(bad_memory(memory))
        def read_memory(bad):
            refused("reconstruct", lambda: gradmem_jax.reconstruct(model, params, bad, CONTEXTS))

        @examples(12)
        @given(BAD_STEPS)
        def steps(bad):
            write = gradmem_jax.write_context
            refused("segments", lambda: write(model, params, segments, num_steps=bad))

        write(), read(), read_memory(), steps()
        later = segments.copy()
        later[:, 1, 0] = 11  # inside the scan over segments no value is known
        refused("segments", lambda: gradmem_jax.write_context(model, params, later))
        refused("reconstruct", lambda: gradmem_jax.reconstruct(model, params, memory, QUERIES))

    @parameterized.parameters("gradmem", "warm_start", "kv_prefix")
    def test_tolerance_refuses(self, name):
        model, params, _ = written(name)
        for bad in ("low", np.nan, True, [0.1], np.array([0.1]), object()):
            call = lambda bad=bad: model.write_memory(params, CONTEXTS, loss_tolerance=bad)
            refused("tolerance", call)

    @parameterized.parameters(*NAMES)
    def test_init_refuses(self, name):
        model, _, _ = written(name)

        @examples(6)
        @given(NO_KEY)
        def keys(bad):
            refused("keys", lambda: model.init(bad))

        keys()

    def test_memory_files_refuse(self):
        model, params, memory = written("gradmem")
        folder = pathlib.Path(tempfile.mkdtemp())
        path = folder / "memory.safetensors"
        save, load = gradmem_jax.save_memory, gradmem_jax.load_memory

        @examples(12)
        @given(bad_memory(memory, any_batch=True))
        def memories(bad):
            refused("files", lambda: save(path, bad, model, params))

        memories()
        for bad in (["a"], [StoredContext("a")], "ab", [None, None]):
            call = lambda bad=bad: save(path, memory, model, params, contexts=bad)
            refused("files", call)
        for bad in (3, "slice", [0, 1], slice("a", "b"), slice(2, 2), slice(0, 2, 2)):
            save(path, memory, model, params)
            refused("files", lambda bad=bad: load(path, model, params, bad))
        for bad in (3, None, [], folder, folder / "none"):
            refused("files", lambda bad=bad: load(bad, model, params))
        refused("files", lambda: save(path, memory, model, params, notes={"a": object()}))
        refused("files", lambda: save(path, memory, model, params, notes=3))
        self.assertEqual(load(path, model, params).shape, memory.shape)

    def test_sizes_refuse(self):
        lm = written("gradmem")[0].config.lm
        for bad in (None, "memory", 3, np.float32(1), object()):
            refused("sizes", lambda bad=bad: gradmem_jax.memory_floats(bad))
        for bad in (-1, 1.5, "8", None, True):
            refused("sizes", lambda bad=bad: gradmem_jax.kv_cache_floats(lm, bad))
        self.assertEqual(gradmem_jax.kv_cache_floats(lm, np.int64(2)), 32)

    def test_accepts_the_same_in_other_forms(self):
        model, params, memory = written("gradmem")
        before = compiles()
        expected = np.asarray(model.write_memory(params, CONTEXTS, num_steps=2)[0])
        self.assertGreater(compiles(), before)  # the counter does count
        forms = [CONTEXTS.tolist(), CONTEXTS.astype(np.uint8), jnp.asarray(CONTEXTS, jnp.int8)]
        for ids, steps in zip(forms, (np.int64(2), jnp.asarray(2), 2), strict=True):
            given_memory, _ = model.write_memory(params, ids, num_steps=steps, max_steps=np.int8(3))
            np.testing.assert_allclose(given_memory, expected, rtol=1e-5)
        answers = [
            gradmem_jax.generate(model, params, memory, ids, count, temperature=zero)
            for ids, count, zero in [
                (QUERIES, 2, 0),
                (QUERIES.tolist(), np.int32(2), np.float32(0)),
                (jnp.asarray(QUERIES), jnp.asarray(2), jnp.asarray(0.0)),
            ]
        ]
        np.testing.assert_array_equal(answers[0], answers[1])
        np.testing.assert_array_equal(answers[0], answers[2])

    @parameterized.parameters((np.int8, 128), (np.int8, 200), (np.int16, 40000), (np.int64, 128))
    def test_ids_of_few_bits_in_a_large_vocabulary(self, dtype, vocab_size):
        lm = gradmem_jax.LlamaConfig(vocab_size=vocab_size, width=8, num_layers=1, num_heads=2)
        model = gradmem_jax.GradMem(gradmem_jax.GradMemConfig(lm=lm, num_memory_tokens=2))
        params = jax.eval_shape(model.init, jax.random.key(0))
        for ids in (CONTEXTS.astype(dtype), jax.ShapeDtypeStruct(CONTEXTS.shape, dtype)):
            memory, _ = jax.eval_shape(model.write_memory, params, ids)
            self.assertEqual(memory.shape, (len(CONTEXTS), 2, 8))

    def test_messages_stay_short(self):
        model, params, memory = written("gradmem")
        with self.assertRaisesRegex(ValueError, "^memory is a list; give the arrays that write_"):
            model.read_memory(params, np.asarray(memory).tolist(), QUERIES)
        with self.assertRaisesRegex(
            ValueError, "no 'lm/.*and .* more .* out of {'params'"
        ) as error:
            model.write_memory({"params": params}, CONTEXTS)
        self.assertLess(len(str(error.exception)), 400)


if __name__ == "__main__":
    absltest.main()
