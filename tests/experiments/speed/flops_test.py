import dataclasses
import itertools

import jax
from absl.testing import absltest, parameterized

from experiments.speed.flops import (
    Products,
    forward_products,
    inference_flops,
    sample_products,
    step_flops,
)
from experiments.speed.setting import Setting
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.memory.gradmem import GradMem
from gradmem_jax.training.step import loss_gradient

SMALL = Setting(context_tokens=32, batch_size=2, write_steps=1, num_layers=2)


class FlopsTest(parameterized.TestCase):
    def test_forward_by_hand(self):
        lm = LlamaConfig(vocab_size=7, width=8, num_layers=3, num_heads=4, num_kv_heads=2)
        layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 32
        expected = Products(2 * (5 * 3 * layer + 2 * 8 * 7), 2 * 2 * 3 * 5 * 5 * 8)
        self.assertEqual(forward_products(lm, 5, 2), expected)

    @parameterized.parameters(
        dict(meta_gradient="mixed", context_tokens=32),
        dict(meta_gradient="mixed", context_tokens=128),
        dict(meta_gradient="mixed", context_tokens=32, queries_per_context=8),
        dict(meta_gradient="reverse", context_tokens=32),
        dict(meta_gradient="reverse", context_tokens=128),
    )
    def test_step_is_what_xla_counts(self, **changes):
        setting = dataclasses.replace(SMALL, **changes)
        model = GradMem(setting.model_config())
        params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
        gradient = jax.jit(lambda params, batch: loss_gradient(model, params, batch)[0])
        counted = gradient.lower(params, setting.batch()).cost_analysis()["flops"]
        # XLA counts a little arithmetic beside the products, and its loop of one step once.
        self.assertBetween(step_flops(setting) / counted, 0.95, 1.0)

    @parameterized.parameters(1, 8)
    def test_inference_is_what_xla_counts(self, queries):
        setting = dataclasses.replace(SMALL, queries_per_context=queries)
        model = GradMem(setting.model_config())
        params = jax.eval_shape(lambda: model.init(jax.random.key(0)))

        @jax.jit
        def answer(params, batch):
            memory, _ = model.write_memory(params, batch["context_ids"])
            return model.read_memory(params, memory, batch["query_ids"])

        counted = answer.lower(params, setting.batch()).cost_analysis()["flops"]
        self.assertBetween(inference_flops(setting) / counted, 0.95, 1.0)

    def test_grows_with_steps_and_batch(self):
        twice = dataclasses.replace(SMALL, batch_size=4)
        self.assertEqual(step_flops(twice), 2 * step_flops(SMALL))
        by_steps = [step_flops(dataclasses.replace(SMALL, write_steps=k)) for k in range(5)]
        first, second, third, fourth = (b - a for a, b in itertools.pairwise(by_steps))
        self.assertEqual(second, fourth)
        write = sample_products(SMALL).write
        # From three steps on the last one is computed again too.
        self.assertEqual(third, second + SMALL.batch_size * write.times(2, 3))
        self.assertGreater(first, SMALL.batch_size * write.times(6, 9))  # and its part apart
        self.assertGreater(by_steps[0], 0)


if __name__ == "__main__":
    absltest.main()
