"""Full context: the same as running the language model over context and query at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import FullContext, FullContextConfig, generate
from gradmem_jax.training.evaluation import evaluate_batch
from gradmem_jax.training.losses import loss_and_metrics
from tests.small import random_ids, small_batch, small_model, small_params

LM = small_model(lm=dict(num_layers=2)).config.lm
MODEL = FullContext(FullContextConfig(lm=LM))
PARAMS = small_params(MODEL)
CONTEXT = random_ids(0, 3, 6)
LENGTHS = (6, 4, 1)
for _row, _length in zip(CONTEXT, LENGTHS, strict=True):
    _row[_length:] = 0
QUERY = random_ids(1, 3, 4)

write = jax.jit(MODEL.write_memory, static_argnames="max_steps")
read = jax.jit(MODEL.read_memory)


@functools.cache
def plain(length):
    run = lambda ids: MODEL.lm.apply({"params": PARAMS["lm"]}, ids, method="everything")
    return jax.jit(run)


def logits_at_once(i, query):
    ids = np.concatenate([CONTEXT[i, : LENGTHS[i]], query])[None]
    return plain(ids.shape[1])(ids)[0, LENGTHS[i] - 1 :]


class FullContextTest(parameterized.TestCase):
    def test_same_as_one_pass_for_contexts_of_different_length(self):
        memory, info = write(PARAMS, CONTEXT)
        logits = read(PARAMS, memory, QUERY)
        for i in range(3):
            np.testing.assert_allclose(logits[i], logits_at_once(i, QUERY[i]), atol=1e-5)
        np.testing.assert_array_equal(memory.length, LENGTHS)
        np.testing.assert_array_equal(info.num_steps, 1)

    def test_many_queries(self):
        memory, _ = write(PARAMS, CONTEXT)
        queries = random_ids(2, 3, 2, 4)
        logits = read(PARAMS, memory, queries)
        for r in range(2):
            np.testing.assert_allclose(logits[:, r], read(PARAMS, memory, queries[:, r]), atol=1e-5)

    def test_padding_changes_nothing(self):
        memory, _ = write(PARAMS, np.pad(CONTEXT, ((0, 0), (0, 3))))
        want, _ = write(PARAMS, CONTEXT)
        np.testing.assert_allclose(
            read(PARAMS, memory, QUERY), read(PARAMS, want, QUERY), atol=1e-5
        )

    def test_no_steps_keep_nothing(self):
        for num_steps in (0, jnp.int32(0)):
            memory, info = MODEL.write_memory(PARAMS, CONTEXT, num_steps=num_steps, max_steps=2)
            logits = read(PARAMS, memory, QUERY)
            alone = plain(4)(QUERY)
            np.testing.assert_allclose(logits[:, 1:], alone, atol=1e-5)
            np.testing.assert_array_equal(info.num_steps, 0)

    def test_generate(self):
        memory, _ = write(PARAMS, CONTEXT)
        got = np.asarray(generate(MODEL, PARAMS, memory, QUERY, 3))
        for i in range(3):
            query = QUERY[i]
            for token in got[i]:
                self.assertEqual(int(logits_at_once(i, query)[-1].argmax()), token)
                query = np.append(query, token)

    def test_token_losses_are_those_of_the_write(self):
        model = FullContext(FullContextConfig(lm=LM, inner_loss_weight=0.5))
        memory, info = jax.jit(model.write_memory)(PARAMS, CONTEXT)
        losses = np.asarray(jax.jit(model.write_token_losses)(PARAMS, memory, CONTEXT))
        means = losses.sum(axis=1) / np.maximum(np.array(LENGTHS) - 1, 1)
        np.testing.assert_allclose(means, info.losses[0], rtol=1e-4)
        np.testing.assert_array_equal(losses[:, 0], 0)
        np.testing.assert_array_equal(losses[CONTEXT == 0], 0)

    def test_writing_on_continues_the_context(self):
        memory, _ = write(PARAMS, CONTEXT)
        more = random_ids(3, 3, 4)
        memory, _ = MODEL.write_memory(PARAMS, more, memory=memory)
        logits = read(PARAMS, memory, QUERY)
        for i in range(3):
            want = logits_at_once(i, np.concatenate([more[i], QUERY[i]]))[4:]
            np.testing.assert_allclose(logits[i], want, atol=1e-5)

    def test_gradient_passes_the_cache(self):
        gradient = jax.jit(
            jax.grad(lambda params: loss_and_metrics(MODEL, params, small_batch())[0])
        )(PARAMS)
        for path, leaf in jax.tree.leaves_with_path(gradient):
            self.assertGreater(np.abs(leaf).max(), 0, path)

    def test_write_loss_is_that_of_the_language_model(self):
        model = FullContext(FullContextConfig(lm=LM, inner_loss_weight=0.5))

        @jax.jit
        def losses_and_memory(ids, memory=None, num_steps=1):
            memory, info = model.write_memory(
                PARAMS, ids, memory=memory, num_steps=num_steps, max_steps=2
            )
            return model.outer_write_loss(info), memory

        losses, memory = losses_and_memory(CONTEXT, num_steps=jnp.int32(1))
        more = random_ids(3, 3, 4)
        others, _ = losses_and_memory(more, memory, jnp.int32(1))
        for i, length in enumerate(LENGTHS):
            ids = np.concatenate([CONTEXT[i, :length], more[i]])
            logits = plain(len(ids))(ids[None])[0]
            each = -jax.nn.log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]]
            want = each[: length - 1].mean() if length > 1 else 0
            np.testing.assert_allclose(losses[i], want, rtol=1e-4)
            np.testing.assert_allclose(others[i], each[length - 1 :].mean(), rtol=1e-4)
        np.testing.assert_array_equal(losses_and_memory(CONTEXT, num_steps=jnp.int32(0))[0], 0)

        batch = small_batch()
        loss, metrics = loss_and_metrics(model, PARAMS, batch)
        self.assertGreater(metrics["write_loss"], 1)
        without, _ = loss_and_metrics(MODEL, PARAMS, batch)
        np.testing.assert_allclose(loss, without + 0.5 * metrics["write_loss"], rtol=1e-5)

    def test_write_loss_of_an_evaluation_is_that_of_training(self):
        model = FullContext(FullContextConfig(lm=LM, inner_loss_weight=0.5))
        batch = small_batch() | {"context_ids": random_ids(0, 3, 9)}
        _, trained = loss_and_metrics(model, PARAMS, batch)
        batch["context_kinds"] = np.where(np.arange(9) < 1, 1, np.full((3, 9), 2)).astype(np.int8)
        evaluated, _ = evaluate_batch(model, PARAMS, batch, jnp.int32(1), max_steps=1, num_kinds=3)
        np.testing.assert_allclose(evaluated["write_loss"], trained["write_loss"], rtol=1e-5)
        by_kind = [0, 0, trained["write_loss"]]  # the first token has no loss
        np.testing.assert_allclose(evaluated["write_loss_by_kind"], by_kind, rtol=1e-5)

    def test_padding_takes_no_positions(self):
        memory, _ = write(PARAMS, CONTEXT)
        one = jax.tree.map(lambda x: x[1:2], memory)
        self.assertEqual(MODEL.num_memory_positions(one), 6)
        short = MODEL.without_padding(one)
        self.assertEqual(MODEL.num_memory_positions(short), LENGTHS[1])
        np.testing.assert_allclose(
            read(PARAMS, short, QUERY[1:2]), read(PARAMS, one, QUERY[1:2]), rtol=1e-4, atol=1e-5
        )
        nothing, _ = MODEL.write_memory(PARAMS, CONTEXT, num_steps=0)
        self.assertEqual(MODEL.num_memory_positions(MODEL.without_padding(nothing)), 0)

    def test_refusals(self):
        memory, _ = write(PARAMS, CONTEXT)
        with self.assertRaisesRegex(ValueError, "positions"):
            MODEL.read_memory(PARAMS, memory, random_ids(0, 3, 35))
        with self.assertRaisesRegex(ValueError, "another configuration"):
            MODEL.read_memory(PARAMS, np.zeros((3, 3, 8), np.float32), QUERY)
        with self.assertRaisesRegex(ValueError, "need"):
            MODEL.read_memory(PARAMS, memory, QUERY[:2])


if __name__ == "__main__":
    absltest.main()
