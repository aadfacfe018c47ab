"""Adapters in WRITE only; numbers of the original are in tests/memory/parity_test.py."""

import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized

from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.gpt2 import GPT2Config
from gradmem_jax.lm.gpt_neox import GPTNeoXConfig
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.lm.lora import attach_lora, drop_inputs, init_lora, merge_lora
from gradmem_jax.training.losses import loss_and_metrics
from gradmem_jax.training.step import init_state, make_train_step, step_params
from tests.small import (
    VOCAB_SIZE,
    numpy_params,
    random_ids,
    small_batch,
    small_params,
    small_rmt,
    small_writer,
)

CONTEXT = random_ids(0, 2, 5)


class LoRATest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    def test_merge(self, scan_layers):
        model = small_writer("gradmem", lm={"num_layers": 2, "scan_layers": scan_layers})
        lm = small_params(model)["lm"]
        adapters = init_lora(jax.random.key(0), lm, 3, ("query", "output", "down"))
        same = merge_lora(lm, adapters, 2.0)
        jax.tree.map(np.testing.assert_array_equal, same, lm)
        rng = np.random.default_rng(0)
        adapters = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), adapters)
        merged = merge_lora(lm, adapters, 2.0)
        cut = lambda tree: (
            jax.tree.map(lambda x: x[1], tree["layers"]) if scan_layers else tree["layers_1"]
        )
        old, new, added = cut(lm), cut(merged), cut(adapters)
        for group, name, inputs in (("attention", "query", 8), ("attention", "output", 8)):
            a, b = added[group][name]["a"], added[group][name]["b"]
            self.assertEqual((a.shape, b.shape), ((inputs, 3), (3, 8)))
            kernel = old[group][name]["kernel"]
            want = kernel + 2.0 * (a @ b).reshape(kernel.shape)
            np.testing.assert_allclose(new[group][name]["kernel"], want, rtol=1e-5)
        self.assertEqual(added["down"]["a"].shape, (12, 3))
        self.assertNotIn("up", added)
        np.testing.assert_array_equal(new["up"]["kernel"], old["up"]["kernel"])

    def test_first_adapters_are_drawn_apart_and_uniform(self):
        kernels = {"query": np.zeros((100, 2, 3), np.float32), "up": np.zeros((100, 6), np.float32)}
        lm = {"layers_0": {name: {"kernel": kernel} for name, kernel in kernels.items()}}
        adapters = init_lora(jax.random.key(0), lm, 50, ("query", "up"))["layers_0"]
        for adapter in adapters.values():
            a = np.abs(adapter["a"])
            self.assertBetween(a.max(), 0.099, 0.1)
            self.assertAlmostEqual(a.mean(), 0.05, delta=2e-3)
            np.testing.assert_array_equal(adapter["b"], 0)
        self.assertGreater(np.abs(adapters["query"]["a"] - adapters["up"]["a"]).min(), 0)

    @parameterized.product(
        config_class=(LlamaConfig, GPT2Config, GPTNeoXConfig), scan_layers=(False, True)
    )
    def test_attached_adapters_act_as_merged_ones(self, config_class, scan_layers):
        sizes = dict(vocab_size=VOCAB_SIZE, width=16, num_layers=2, num_heads=2, max_positions=40)
        lm = make_lm(config_class(**sizes, init="fan_in", scan_layers=scan_layers))
        ids = random_ids(0, 2, 5)
        init = lambda: lm.init(jax.random.key(0), ids, method="everything")
        params = numpy_params(init)["params"]
        names = ("query", "key", "value", "output", "gate", "up", "down")
        draw = np.random.default_rng(0).standard_normal
        adapters = jax.tree.map(
            lambda x: draw(x.shape).astype(x.dtype),
            init_lora(jax.random.key(0), params, 3, names),
        )
        logits = lambda params: lm.apply({"params": params}, ids, method="everything")
        want = logits(merge_lora(params, adapters, 2.0))
        self.assertGreater(np.abs(want - logits(params)).max(), 0.1)
        attached = attach_lora(params, adapters, 2.0)
        np.testing.assert_allclose(logits(attached), want, rtol=1e-3, atol=1e-4)

    @parameterized.parameters("gradmem", "rmt", "warm_start")
    def test_adapters_change_write_and_not_read(self, name):
        model = small_writer(name, write_lora_rank=2, num_write_steps=1)
        params = small_params(model)
        without = params | {"write_lora": jax.tree.map(np.zeros_like, params["write_lora"])}
        write = jax.jit(model.write_memory)
        memory, other = write(params, CONTEXT)[0], write(without, CONTEXT)[0]
        self.assertGreater(np.abs(memory - other).max(), 1e-3)
        read = jax.jit(model.read_memory)
        np.testing.assert_array_equal(read(params, memory, CONTEXT), read(without, memory, CONTEXT))
        losses = jax.jit(model.write_token_losses)
        difference = losses(params, memory, CONTEXT) - losses(without, memory, CONTEXT)
        self.assertGreater(np.abs(difference).max(), 1e-3)

    def test_the_outer_gradient_reaches_the_adapters(self):
        model = small_rmt(write_lora_rank=2, num_write_steps=1)
        params = small_params(model)
        gradient = jax.jit(jax.grad(lambda p: loss_and_metrics(model, p, small_batch())[0]))(params)
        for path, leaf in jax.tree.leaves_with_path(gradient["write_lora"]):
            self.assertGreater(np.abs(leaf).max(), 0, path)

    def test_dropout_leaves_out_inputs_and_keeps_the_mean(self):
        adapters = {"up": {"a": np.ones((2, 500, 3), np.float32), "b": np.ones((2, 3, 4))}}
        adapters["down"] = adapters["up"]
        dropped = drop_inputs(adapters, jax.random.key(0), 0.25)
        a = np.asarray(dropped["up"]["a"])
        np.testing.assert_array_equal(a, np.broadcast_to(a[..., :1], a.shape))  # whole inputs
        np.testing.assert_allclose(np.unique(a), [0, 4 / 3], rtol=1e-6)
        self.assertAlmostEqual(a.mean(), 1, delta=0.1)
        self.assertFalse((a[0] == a[1]).all())
        self.assertFalse((a == dropped["down"]["a"]).all())
        self.assertIs(dropped["up"]["b"], adapters["up"]["b"])

    def test_dropout_in_training_only(self):
        model = small_rmt(write_lora_rank=2, num_write_steps=1, write_lora_dropout=0.5)
        params = small_params(model)
        optimizer = optax.sgd(1.0)
        step = jax.jit(make_train_step(model, optimizer, frozen=("^lm/",), seed=3))
        state = init_state(params, optimizer, ("^lm/",))
        after, _ = step(state, small_batch())
        moved = lambda new: (
            np.asarray(new.params["write_lora"]["layers_0"]["up"]["a"])
            - params["write_lora"]["layers_0"]["up"]["a"]
        )
        left_out = (moved(after) == 0).all(axis=-1)
        used = step_params(model, params, 0, 3)["write_lora"]["layers_0"]["up"]["a"]
        np.testing.assert_array_equal(left_out, (used == 0).all(axis=-1))
        self.assertBetween(left_out.sum(), 1, left_out.size - 1)
        later, _ = step(state._replace(step=jax.numpy.int32(1)), small_batch())
        self.assertFalse(((moved(later) == 0).all(axis=-1) == left_out).all())
        loss = lambda params: loss_and_metrics(
            model, step_params(model, params, 0, 3), small_batch()
        )[0]
        want = jax.jit(jax.grad(loss))(params)["write_lora"]
        got = jax.tree.map(np.subtract, params["write_lora"], after.params["write_lora"])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), got, want)

    def test_refusals(self):
        for share in (-0.1, 1.0, float("nan")):
            with self.assertRaisesRegex(ValueError, f"write_lora_dropout={share}"):
                small_rmt(write_lora_rank=2, write_lora_dropout=share)
        with self.assertRaisesRegex(ValueError, "write_lora_dropout=0.1 needs adapters"):
            small_rmt(write_lora_dropout=0.1)
        with self.assertRaisesRegex(ValueError, "write_lora_rank=-1"):
            small_rmt(write_lora_rank=-1)
        model = small_rmt(write_lora_rank=1, write_lora_targets=["q_proj"])
        with self.assertRaisesRegex(ValueError, r"named one of \('q_proj',\).*'query'"):
            model.init(jax.random.key(0))
        hash(
            model
        )  # a list of targets, as JSON has it, leaves the model usable as a static argument


if __name__ == "__main__":
    absltest.main()
