"""Decoding with the cache against decoding without one, and against probabilities."""

import sys
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import generate
from tests.small import random_ids, small_model, small_params

MODEL = small_model(num_control_tokens=1, lm=dict(num_layers=2, scan_layers=True))
PARAMS = small_params(MODEL)
MEMORY = np.random.default_rng(0).standard_normal((3, 3, 8)).astype(np.float32)
read = jax.jit(MODEL.read_memory)


def without_cache(query: np.ndarray, sample: int, count: int) -> list[int]:
    """Greedy tokens behind an unpadded query of one sample, a whole READ for each."""
    tokens = list(query)
    for _ in range(count):
        ids = np.zeros((1, 10), int)
        ids[0, : len(tokens)] = tokens
        logits = read(PARAMS, MEMORY[sample : sample + 1], ids)
        tokens.append(int(logits[0, len(tokens)].argmax()))
    return tokens[len(query) :]


class GenerateTest(parameterized.TestCase):
    def test_same_as_without_cache_for_queries_of_different_length(self):
        queries = random_ids(3, 3, 5)
        lengths = (5, 2, 3)
        for row, length in zip(queries, lengths, strict=True):
            row[length:] = 0
        got = generate(MODEL, PARAMS, MEMORY, queries, 4)
        for i, length in enumerate(lengths):
            self.assertEqual(got[i].tolist(), without_cache(queries[i, :length], i, 4))

    def test_many_queries(self):
        queries = random_ids(4, 3, 2, 4)
        queries[0, 1, 2:] = queries[2, 0, 1:] = 0
        got = generate(MODEL, PARAMS, MEMORY, queries, 3)
        self.assertEqual(got.shape, (3, 2, 3))
        for r in range(2):
            want = generate(MODEL, PARAMS, MEMORY, queries[:, r], 3)
            np.testing.assert_array_equal(got[:, r], want)

    def test_inside_of_other_programs(self):
        queries = random_ids(4, 3, 2, 4)
        want = generate(MODEL, PARAMS, MEMORY, queries, 3)
        one = lambda memory, ids: generate(MODEL, PARAMS, memory[None], ids[None], 3)[0]
        np.testing.assert_array_equal(jax.jit(jax.vmap(one))(MEMORY, queries), want)
        np.testing.assert_array_equal(jax.pmap(one)(MEMORY, queries), want)
        key = jax.random.key(0)
        constant = jax.jit(lambda: generate(MODEL, PARAMS, MEMORY, queries, 3, key=key))
        np.testing.assert_array_equal(constant(), want)

    def test_versions_of_xla_without_the_option(self):
        queries = random_ids(4, 3, 4)
        want = generate(MODEL, PARAMS, MEMORY, queries, 3)
        module = sys.modules["gradmem_jax.memory.generate"]
        self.addCleanup(module._compiled.cache_clear)
        module._compiled.cache_clear()
        with mock.patch.object(module, "FEWER_COPIES", ("xla_cpu_unheard_of", True)):
            got = generate(MODEL, PARAMS, MEMORY, queries, 3)
        np.testing.assert_array_equal(got, want)

    def test_stops(self):
        queries = random_ids(3, 3, 5)
        free = np.asarray(generate(MODEL, PARAMS, MEMORY, queries, 5))
        stop = int(free[0, 1])
        stopped = np.asarray(generate(MODEL, PARAMS, MEMORY, queries, 5, stop_id=stop))
        for before, after in zip(free, stopped, strict=True):
            hits = np.flatnonzero(before == stop)
            end = hits[0] + 1 if len(hits) else 5
            np.testing.assert_array_equal(after[:end], before[:end])
            np.testing.assert_array_equal(after[end:], 0)

    def test_decodes_until_all_have_stopped(self):
        tokens = []

        class Counting(type(MODEL)):
            def decode_token(self, params, state, ids):
                jax.debug.callback(tokens.append, ids)
                return super().decode_token(params, state, ids)

        queries = random_ids(3, 3, 5)
        model = Counting(MODEL.config)
        free = np.asarray(generate(model, PARAMS, MEMORY, queries, 6))
        jax.effects_barrier()
        self.assertLen(tokens, 5)
        tokens.clear()
        stop = int(free[0, 1])
        self.assertNotEqual(stop, free[0, 0])
        got = generate(model, PARAMS, MEMORY[:1], queries[:1], 6, stop_id=stop)
        np.testing.assert_array_equal(got, [[*free[0, :2], 0, 0, 0, 0]])
        jax.effects_barrier()
        self.assertLen(tokens, 1)

    def test_draws_from_the_distribution(self):
        memory = np.repeat(MEMORY[:1], 2000, axis=0)
        queries = np.tile([[[1, 2], [3, 4]]], (2000, 1, 1))
        got = generate(MODEL, PARAMS, memory, queries, 2, temperature=2.0, key=jax.random.key(0))
        logits = read(PARAMS, MEMORY[:1], queries[:1])[0, :, -1]
        for r in range(2):
            want = np.asarray(jax.nn.softmax(logits[r] / 2))
            rates = np.bincount(got[:, r, 0], minlength=len(want)) / 2000
            np.testing.assert_allclose(rates, want, atol=4 * 0.5 / np.sqrt(2000))
        self.assertGreater(len(np.unique(got[:, 0, 0])), 1)
        again = generate(MODEL, PARAMS, memory, queries, 2, temperature=2.0, key=jax.random.key(0))
        np.testing.assert_array_equal(got, again)
        hot = generate(MODEL, PARAMS, memory, queries, 2, temperature=1e4, key=jax.random.key(0))
        hot = np.asarray(hot)  # all tokens alike: equal ones are chance
        for one, other in ((hot[:, 0], hot[:, 1]), (hot[..., 0], hot[..., 1])):
            self.assertAlmostEqual((one == other).mean(), 1 / 11, delta=0.03)

    def test_hardly_warm_is_greedy(self):
        queries = random_ids(3, 3, 5)
        want = generate(MODEL, PARAMS, MEMORY, queries, 4)
        for temperature in (1e-6, 2e-38, 1e-40, 1e-60):
            key = jax.random.key(1)
            got = generate(MODEL, PARAMS, MEMORY, queries, 4, temperature=temperature, key=key)
            np.testing.assert_array_equal(got, want)

    @parameterized.parameters(
        dict(max_new_tokens=1, temperature=-1.0, message="temperature=-1.0 must not"),
        dict(max_new_tokens=1, temperature=1.0, message="give a key"),
        dict(max_new_tokens=0, message="max_new_tokens=0"),
        dict(max_new_tokens=40, message="positions"),
        dict(max_new_tokens=1, stop_id=11, message="stop_id=11"),
    )
    def test_errors(self, message, **arguments):
        with self.assertRaisesRegex(ValueError, message):
            generate(MODEL, PARAMS, MEMORY, random_ids(3, 3, 5), **arguments)


if __name__ == "__main__":
    absltest.main()
