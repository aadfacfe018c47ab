"""Contexts in segments: one WRITE after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from gradmem_jax import write_context
from gradmem_jax.memory.segments import outer_write_loss, write_token_losses
from gradmem_jax.training.evaluation import evaluate_batch
from gradmem_jax.training.losses import loss_and_metrics
from tests.small import random_ids, small_batch, small_model, small_params, small_writer

SEGMENTS = random_ids(0, 3, 3, 6)  # [B, T, S]
SEGMENTS[1, 1, 4:] = 0


class SegmentsTest(parameterized.TestCase):
    @parameterized.parameters("gradmem", "full_context")
    def test_each_segment_goes_on_from_the_memory_of_the_last(self, name):
        model = small_writer(name, num_write_steps=1)
        params = small_params(model)
        memory, info = jax.jit(lambda p, ids: write_context(model, p, ids))(params, SEGMENTS)
        write, want = jax.jit(model.write_memory), None
        for t in range(3):
            want, _ = write(params, SEGMENTS[:, t], memory=want)
        for got, expected in zip(jax.tree.leaves(memory), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        self.assertEqual(info.num_steps.shape, (3, 3))

    @parameterized.parameters("gradmem", "full_context")
    def test_writing_on(self, name):
        model = small_writer(name, num_write_steps=1)
        params = small_params(model)
        run = jax.jit(lambda p, ids, memory: write_context(model, p, ids, memory=memory)[0])
        memory = run(params, SEGMENTS[:, :2], run(params, SEGMENTS[:, 2], None))
        want = run(params, SEGMENTS[:, [2, 0, 1]], None)
        for got, expected in zip(jax.tree.leaves(memory), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)

    def test_the_outer_gradient_passes_all_segments(self):
        model = small_writer("gradmem", num_write_steps=1, inner_loss_weight=0.5)
        params = small_params(model)
        batch = small_batch() | {"context_ids": SEGMENTS}

        def by_hand(params):
            memory, losses = None, []
            for t in range(3):
                memory, info = model.write_memory(params, SEGMENTS[:, t], memory=memory)
                losses.append(info.losses[-1])
            logits = model.read_memory(params, memory, batch["query_ids"])[:, :, :-1]
            log_likelihood = jax.nn.log_softmax(logits)
            targets = np.maximum(batch["labels"], 0)[..., None]
            chosen = jnp.take_along_axis(log_likelihood, targets, axis=-1)[..., 0]
            read = -(chosen * (batch["labels"] >= 0)).sum() / (batch["labels"] >= 0).sum()
            return read + 0.5 * sum(loss.mean() for loss in losses) / 3

        run = lambda params: loss_and_metrics(model, params, batch)[0]
        got, want = (jax.jit(jax.value_and_grad(f))(params) for f in (run, by_hand))
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

    @parameterized.parameters(
        dict(num_steps=np.int64(1)),
        dict(num_steps=jnp.int32(2), max_steps=np.int32(3)),
        dict(num_steps=[0, 1, 2]),
        dict(num_steps=[0, 1, 2], max_steps=4),
        dict(num_steps=1, max_steps=None),
        dict(write_learning_rate=[0.5, 1.0, 2.0]),
        dict(write_learning_rate=np.float64(2), loss_tolerance=None),
        dict(loss_tolerance=[1.0, 2.0, 3.0]),
    )
    def test_takes_what_write_memory_takes(self, **options):
        model = small_writer("gradmem", num_write_steps=1)
        params = small_params(model)
        memory, _ = write_context(model, params, SEGMENTS, **options)
        want = None
        for t in range(3):
            want, _ = model.write_memory(params, SEGMENTS[:, t], memory=want, **options)
        np.testing.assert_allclose(memory, want, rtol=1e-4, atol=1e-5)

    def test_another_learning_rate_compiles_nothing(self):
        model = small_writer("gradmem", num_write_steps=1)
        params = small_params(model)
        write_context(model, params, SEGMENTS, write_learning_rate=1.0)
        with jax.log_compiles(), self.assertNoLogs("jax._src.interpreters", "WARNING"):
            for rate in (2.0, 1, np.float32(3)):
                write_context(model, params, SEGMENTS, write_learning_rate=rate)

    def test_losses_of_every_segment_under_one_memory(self):
        model = small_writer("rmt", inner_loss_weight=0.5)
        params = small_params(model)
        memory, info = jax.jit(lambda p, ids: write_context(model, p, ids))(params, SEGMENTS)
        losses = jax.jit(lambda *args: write_token_losses(model, *args))(params, memory, SEGMENTS)
        want = jax.jit(model.write_token_losses)(params, memory, SEGMENTS[:, 1])
        np.testing.assert_allclose(losses[:, 1], want, rtol=1e-5)
        want = np.mean([loss[1:].mean(axis=0) for loss in np.asarray(info.losses)], axis=0)
        np.testing.assert_allclose(outer_write_loss(model, SEGMENTS, info), want, rtol=1e-5)

    def test_exact_match_by_segment(self):
        model = small_writer("rmt")
        params = small_params(model)
        batch = small_batch() | {
            "context_ids": SEGMENTS,
            "query_segments": np.array([[0, 1], [1, 1], [2, 0]], np.int32),
            "valid": np.array([True, True, False]),
        }
        memory, _ = jax.jit(lambda p, ids: write_context(model, p, ids))(params, SEGMENTS)
        logits = jax.jit(model.read_memory)(params, memory, batch["query_ids"])[:, :, :-1]
        right = np.asarray(logits.argmax(-1) == batch["labels"]) | (batch["labels"] < 0)
        batch["labels"][0, 0, 3:] = np.asarray(logits.argmax(-1))[0, 0, 3:]  # one is right
        metrics, totals = evaluate_batch(model, params, batch, np.int32(1), max_steps=1)
        np.testing.assert_array_equal(totals["segment_queries"], [1, 3, 0])
        others = right.all(-1)[[0, 1, 1], [1, 0, 1]].mean()
        np.testing.assert_allclose(metrics["exact_match_by_segment"], [1, others, 0], atol=1e-6)

    @parameterized.parameters("gradmem", "rmt")
    def test_a_segment_of_padding_changes_nothing(self, name):
        if name == "gradmem":
            decaying = optax.adamw(0.1, eps_root=1e-8, weight_decay=0.1)
            model = small_model(decaying, num_write_steps=1)
        else:
            model = small_writer(name, num_write_steps=1)
        params = small_params(model)
        padded = SEGMENTS.copy()
        padded[0, 2] = 0  # the other samples have tokens there
        write = jax.jit(lambda p, ids: write_context(model, p, ids)[0])
        got, want, before = (write(params, i) for i in (padded, SEGMENTS, SEGMENTS[:, :2]))
        np.testing.assert_allclose(got[0], before[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[1:], want[1:], rtol=1e-5, atol=1e-6)

    def test_a_segment_of_padding_has_no_part_in_the_outer_loss(self):
        model = small_writer("gradmem", num_write_steps=1, inner_loss_weight=0.5)
        params = small_params(model)
        padded = SEGMENTS.copy()
        padded[0, 2] = 0
        loss = jax.jit(lambda p, ids: outer_write_loss(model, ids, write_context(model, p, ids)[1]))
        got, whole, part = (loss(params, ids) for ids in (padded, SEGMENTS, SEGMENTS[:, :2]))
        np.testing.assert_allclose(got, [part[0], whole[1], whole[2]], rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
