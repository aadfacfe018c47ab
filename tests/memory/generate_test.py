"""Decoding with the cache against decoding without one, and against probabilities."""

import functools
import sys
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import generate
from tests.small import compiles, random_ids, small_model, small_params

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
        tokens.append(int(logits[0, len(tokens), 1:].argmax()) + 1)  # padding is no token
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

    def test_ids_that_are_never_generated(self):
        query = random_ids(3, 3, 5)
        likely = np.unique(generate(MODEL, PARAMS, MEMORY, query, 2))
        for how in ({}, {"temperature": 5.0, "key": jax.random.key(0)}):
            got = generate(MODEL, PARAMS, MEMORY, query, 8, never=likely, **how)
            self.assertFalse(np.isin(got, [0, *likely]).any())
        ids = "ids of the vocabulary of 11"
        left = generate(MODEL, PARAMS, MEMORY, query, 2, never=[*range(7), 8, 9, 10])
        np.testing.assert_array_equal(left, 7)  # the padding may be among them
        for never, message in (
            ([11], f"never=.*{ids}"),
            (5, f"never=.*{ids}"),
            (None, f"never=.*{ids}"),
            (range(1, 11), "never=.*leaves no"),
            (range(11), "never=.*leaves no"),
            ([[1], [1, 2]], f"never is no array; give {ids}"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                generate(MODEL, PARAMS, MEMORY, query, 1, never=never)

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
            want = np.append(0, jax.nn.softmax(logits[r, 1:] / 2))
            rates = np.bincount(got[:, r, 0], minlength=len(want)) / 2000
            np.testing.assert_allclose(rates, want, atol=4 * 0.5 / np.sqrt(2000))
        self.assertGreater(len(np.unique(got[:, 0, 0])), 1)
        again = generate(MODEL, PARAMS, memory, queries, 2, temperature=2.0, key=jax.random.key(0))
        np.testing.assert_array_equal(got, again)
        hot = generate(MODEL, PARAMS, memory, queries, 2, temperature=1e4, key=jax.random.key(0))
        hot = np.asarray(hot)  # all tokens alike: equal ones are chance
        for one, other in ((hot[:, 0], hot[:, 1]), (hot[..., 0], hot[..., 1])):
            self.assertAlmostEqual((one == other).mean(), 1 / 10, delta=0.03)

    @parameterized.parameters(
        dict(top_k=1),
        dict(top_k=4),
        dict(top_k=99),
        dict(top_p=0.5),
        dict(top_p=1.0),
        dict(top_p=1e-9),
        dict(top_k=3, top_p=0.8),
    )
    def test_draws_from_the_most_probable(self, **options):
        memory = np.repeat(MEMORY[:1], 4000, axis=0)
        queries = np.tile([[1, 2]], (4000, 1))
        draw = functools.partial(generate, MODEL, PARAMS, memory, queries, 1, key=jax.random.key(0))
        got = np.asarray(draw(temperature=1.5, **options))[:, 0]
        logits = np.float64(read(PARAMS, MEMORY[:1], queries[:1])[0, -1, 1:]) / 1.5
        order = np.argsort(-logits)
        chosen = order[: options.get("top_k", 10)]
        want = np.exp(logits[chosen]) / np.exp(logits[chosen]).sum()
        enough = np.cumsum(want) - want < options.get("top_p", 1.0)
        chosen, want = chosen[enough], want[enough] / want[enough].sum()
        rates = np.bincount(got, minlength=11) / 4000
        np.testing.assert_allclose(rates[chosen + 1], want, atol=4 * 0.5 / np.sqrt(4000))
        self.assertAlmostEqual(rates[chosen + 1].sum(), 1.0)
        traced = jax.jit(
            lambda *x: draw(temperature=x[0], **dict(zip(options, x[1:], strict=True)))
        )
        np.testing.assert_array_equal(traced(1.5, *options.values())[:, 0], got)

    def test_a_traced_temperature_of_zero_is_greedy(self):
        queries, key = random_ids(3, 3, 2, 5), jax.random.key(1)
        draw = lambda t: generate(MODEL, PARAMS, MEMORY, queries, 4, temperature=t, key=key)
        traced = jax.jit(draw)
        np.testing.assert_array_equal(traced(0.0), draw(0.0))
        np.testing.assert_array_equal(traced(0.7), draw(0.7))
        np.testing.assert_array_equal(jax.vmap(draw)(np.array([0.0, 0.7]))[1], draw(0.7))

    def test_several_stops(self):
        queries = random_ids(3, 3, 5)
        free = np.asarray(generate(MODEL, PARAMS, MEMORY, queries, 6))
        stops = [int(free[0, 1]), int(free[1, 2])]
        got = np.asarray(generate(MODEL, PARAMS, MEMORY, queries, 6, stop_id=stops))
        for before, after in zip(free, got, strict=True):
            hits = np.flatnonzero(np.isin(before, stops))
            end = hits[0] + 1 if len(hits) else 6
            np.testing.assert_array_equal(after, [*before[:end], *[0] * (6 - end)])

    def test_what_is_made_can_be_asked_again(self):
        # A head that always prefers the padding.
        params = PARAMS | {"lm": PARAMS["lm"] | {"head": PARAMS["lm"]["head"].copy()}}
        model = small_model(num_control_tokens=1, lm=dict(num_layers=2, scan_layers=True))
        queries = random_ids(3, 3, 5)
        hidden_like = np.zeros((8, 11), np.float32)
        params["lm"]["head"] = hidden_like  # all alike: the first id, padding, would win
        first = generate(model, params, MEMORY, queries, 3)
        self.assertTrue((np.asarray(first) != 0).all())
        drawn = generate(model, params, MEMORY, queries, 9, temperature=1.0, key=jax.random.key(0))
        self.assertTrue((np.asarray(drawn) != 0).all())
        longer = np.concatenate([queries, first], axis=1)
        self.assertEqual(generate(model, params, MEMORY, longer, 3).shape, (3, 3))
        stopped = generate(model, params, MEMORY, queries, 3, stop_id=0)
        np.testing.assert_array_equal(stopped, 0)

    def test_other_numbers_compile_nothing_new(self):
        queries, key = random_ids(3, 3, 5), jax.random.key(0)
        draw = functools.partial(generate, MODEL, PARAMS, MEMORY, queries, 2, key=key)
        draw(temperature=0.5, top_k=3, top_p=0.5, stop_id=[1, 2])
        with compiles() as compiled:
            draw(temperature=0.9, top_k=5, top_p=0.7, stop_id=[3, 4])
        self.assertEmpty(compiled)

    def test_copies_nothing_that_lies_on_the_device(self):
        params, memory, queries = jax.device_put((PARAMS, MEMORY, random_ids(3, 3, 5)))
        want = generate(MODEL, params, memory, queries, 3)
        with jax.transfer_guard("disallow"):
            got = generate(MODEL, params, memory, queries, 3)
        np.testing.assert_array_equal(got, want)

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
        dict(max_new_tokens=1, stop_id=[1, 11], message=r"stop_id=\[1, 11\]"),
        dict(max_new_tokens=1, top_k=0, message="top_k=0"),
        dict(max_new_tokens=1, top_p=0.0, message="top_p=0.0"),
        dict(max_new_tokens=1, top_p=1.5, message="top_p=1.5"),
    )
    def test_errors(self, message, **arguments):
        with self.assertRaisesRegex(ValueError, message):
            generate(MODEL, PARAMS, MEMORY, random_ids(3, 3, 5), **arguments)


if __name__ == "__main__":
    absltest.main()
