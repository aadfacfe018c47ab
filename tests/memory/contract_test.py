"""What holds for every way of writing a memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import memory_floats
from gradmem_jax.losses import token_losses
from gradmem_jax.methods import METHODS
from gradmem_jax.parallel import micro_batches
from tests.small import VOCAB_SIZE, random_ids, small_batch, small_params, small_parts, small_writer

BATCH = small_batch()
CONTEXT, QUERIES = BATCH["context_ids"], BATCH["query_ids"].copy()
QUERIES[1, 0, 3:] = 0  # padding
MAX_STEPS = 3


@functools.cache
def writer(name):
    """Model, parameters and its compiled functions: one compile of each serves all tests."""
    model = small_writer(name)
    params = small_params(model)
    write = jax.jit(functools.partial(model.write_memory, max_steps=MAX_STEPS))
    return model, params, write, jax.jit(model.read_memory)


@parameterized.named_parameters((name, name) for name in METHODS)
class ContractTest(parameterized.TestCase):
    def test_shapes_and_dtypes(self, name):
        model, params, write, read = writer(name)
        before = jax.tree.map(np.copy, params)
        memory, info = write(params, CONTEXT, num_steps=1)
        chex.assert_tree_shape_prefix(memory, (3,))
        chex.assert_tree_all_finite(memory)
        chex.assert_shape(info.num_steps, (3,))
        logits = read(params, memory, QUERIES)
        chex.assert_shape(logits, (3, 2, 6, VOCAB_SIZE))
        chex.assert_type(logits, jnp.float32)
        one_query = read(params, memory, QUERIES[:, 0])
        chex.assert_shape(one_query, (3, 6, VOCAB_SIZE))
        np.testing.assert_allclose(one_query, logits[:, 0], rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_equal(params, before)
        floats = [x for x in jax.tree.leaves(memory) if jnp.issubdtype(x.dtype, jnp.floating)]
        self.assertEqual(memory_floats(memory), sum(x[0].size for x in floats))

    def test_a_memory_depends_on_its_own_context_only(self, name):
        _, params, write, read = writer(name)
        memory, _ = write(params, CONTEXT, num_steps=2)
        others = random_ids(7, 3, 9)
        others[1] = CONTEXT[1]
        among_others, _ = write(params, others, num_steps=2)
        want, got = (read(params, m, QUERIES)[1] for m in (memory, among_others))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        padded = np.pad(CONTEXT, ((0, 0), (0, 4)))
        got = read(params, write(params, padded, num_steps=2)[0], QUERIES)
        np.testing.assert_allclose(got, read(params, memory, QUERIES), rtol=1e-4, atol=1e-5)

    def test_a_large_batch_is_written_in_parts_alike(self, name):
        model, params, write, _ = writer(name)
        first, _ = write(params, CONTEXT, num_steps=1)
        more = random_ids(8, 3, 9)
        want = write(params, more, memory=first, num_steps=2)
        with small_parts(9) as counted:
            self.assertEqual(micro_batches.count_micro_batches(-1, *more.shape), 3)
            write_again = functools.partial(model.write_memory, max_steps=MAX_STEPS)
            got = jax.jit(write_again)(params, more, memory=first, num_steps=2)
        self.assertGreater(counted.call_count, 1)
        # LaCT makes updates orthogonal, which makes rounding errors larger.
        chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4 if name == "lact" else 1e-5)
        for bad in (CONTEXT - 1, CONTEXT + VOCAB_SIZE):
            with small_parts(9), self.assertRaisesRegex(ValueError, "holds ids from"):
                model.write_memory(params, bad)

    def test_no_steps_leave_no_trace_of_the_context(self, name):
        _, params, write, read = writer(name)
        others = random_ids(7, 3, 9)
        first, second = (
            read(params, write(params, ids, num_steps=0)[0], QUERIES) for ids in (CONTEXT, others)
        )
        if name == "warm_start":  # the forward write remains
            self.assertGreater(np.abs(first - second).max(), 1e-3)
        else:
            np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
        written = read(params, write(params, CONTEXT, num_steps=1)[0], QUERIES)
        self.assertGreater(np.abs(written - first).max(), 1e-3)

    def test_more_steps_change_what_is_written_in_more_than_one_pass(self, name):
        model, params, write, read = writer(name)
        once, twice = (
            read(params, write(params, CONTEXT, num_steps=k)[0], QUERIES) for k in (1, 2)
        )
        if model.one_pass:
            np.testing.assert_array_equal(once, twice)
        else:
            self.assertGreater(np.abs(once - twice).max(), 1e-3)

    def test_a_traced_number_of_steps_is_clipped_to_its_bounds(self, name):
        model, params, write, _ = writer(name)
        for given, taken in ((-2, 0), (9, 1 if model.one_pass else MAX_STEPS)):
            memory, info = write(params, CONTEXT, num_steps=given)
            np.testing.assert_array_equal(info.num_steps, taken)
            chex.assert_trees_all_equal(memory, write(params, CONTEXT, num_steps=taken)[0])

    def test_writing_on(self, name):
        model, params, write, read = writer(name)
        memory, _ = write(params, CONTEXT, num_steps=1)
        more = random_ids(8, 3, 9)
        both, _ = write(params, more, memory=memory, num_steps=1)
        alone, _ = write(params, more, num_steps=1)
        logits = [read(params, m, QUERIES) for m in (memory, both, alone)]
        for one in (0, 2):
            self.assertGreater(np.abs(logits[one] - logits[1]).max(), 1e-4)

    def test_write_token_losses(self, name):
        model, params, write, read = writer(name)
        memory, _ = write(params, CONTEXT, num_steps=1)
        losses = np.asarray(jax.jit(model.write_token_losses)(params, memory, CONTEXT))
        chex.assert_shape(losses, (3, 9))
        np.testing.assert_array_equal(losses[CONTEXT == 0], 0)
        first = int(name == "full_context")  # nothing predicts the first token
        self.assertTrue((losses[:, first:][CONTEXT[:, first:] != 0] > 0).all())
        if not model.config.has_write_loss:
            logits = read(params, memory, CONTEXT[:, None])[:, 0, :-1]
            want = token_losses(logits, np.where(CONTEXT == 0, -100, CONTEXT))
            np.testing.assert_allclose(losses, want, rtol=1e-4)

    def test_write_token_losses_refuses_what_is_none_of_its_model(self, name):
        model, params, write, _ = writer(name)
        memory, _ = write(params, CONTEXT, num_steps=1)
        for ids, message in (
            (np.where(CONTEXT == 0, 0, 99), "vocabulary"),
            (-CONTEXT, "vocabulary"),
            (CONTEXT[:, ::-1], "before a token"),
            (CONTEXT.astype(float), "must be integers"),
            (CONTEXT[0], r"\[B, S\]"),
            (CONTEXT[:2], "memory"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                jax.eval_shape(lambda m, ids=ids: model.write_token_losses(params, m, ids), memory)

    def test_context_too_long(self, name):
        model, params, _, _ = writer(name)
        room = model.config.lm.max_positions - model.write_positions
        shape = lambda length: jax.ShapeDtypeStruct((3, length), jnp.int32)
        jax.eval_shape(model.write_memory, params, shape(room))
        with self.assertRaisesRegex(ValueError, f"Shorten it to {room} "):
            jax.eval_shape(model.write_memory, params, shape(room + 1))

    def test_refusals(self, name):
        model, params, write, _ = writer(name)
        memory, _ = write(params, CONTEXT, num_steps=1)
        with self.assertRaisesRegex(ValueError, "vocabulary"):
            model.write_memory(params, CONTEXT + VOCAB_SIZE)
        with self.assertRaisesRegex(ValueError, "num_steps=-1"):
            model.write_memory(params, CONTEXT, num_steps=-1)
        with self.assertRaisesRegex(ValueError, r"\[B, S\]"):
            model.write_memory(params, CONTEXT[0])
        with self.assertRaisesRegex(ValueError, "need"):
            model.read_memory(params, memory, QUERIES[:2])
        with self.assertRaisesRegex(ValueError, "another configuration"):
            model.read_memory(params, {"x": np.zeros((3, 1), np.float32)}, QUERIES)
        broken = jax.tree.map(
            lambda x: x * np.nan if jnp.issubdtype(x.dtype, jnp.floating) else x, memory
        )
        with self.assertRaisesRegex(ValueError, "NaN"):
            model.read_memory(params, broken, QUERIES)

    def test_a_memory_of_another_precision(self, name):
        model, params, _, read = writer(name)
        memory = jax.eval_shape(model.write_memory, params, CONTEXT)[0]
        is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
        zeros = lambda dtype: jax.tree.map(
            lambda x: np.zeros(x.shape, dtype if is_float(x) else np.int64), memory
        )
        jax.eval_shape(read, params, zeros(np.float64), QUERIES)  # JAX has no other but float32
        for call, ids in ((model.read_memory, QUERIES), (model.write_memory, CONTEXT)):
            with self.assertRaisesRegex(ValueError, r"dtype float16 .*astype\('float32'\)"):
                if call == model.read_memory:
                    call(params, zeros(np.float16), ids)
                else:
                    call(params, ids, memory=zeros(np.float16))


if __name__ == "__main__":
    absltest.main()
