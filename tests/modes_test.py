"""The library under JAX's strict modes: what they refuse, no method does.

Types and ranks are mixed, and tracers leaked, while a function is traced; so that is all that is
done for these modes. Copies between host and device, and NaN, show when it runs.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from gradmem_jax import (
    RMT,
    FullContext,
    FullContextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GradMem,
    GradMemConfig,
    RMTConfig,
    generate,
    reconstruct,
    write_context,
)
from gradmem_jax.losses import mean_per_sample, token_losses
from gradmem_jax.methods import METHODS
from gradmem_jax.training.evaluation import evaluate_batch
from gradmem_jax.training.step import init_state, make_train_step
from tests.small import VOCAB_SIZE, small_batch, small_model, small_params, small_writer

BATCH = small_batch()
BATCH = {name: x.astype(np.int32) for name, x in BATCH.items()}
PADDING = BATCH["context_ids"].copy()
PADDING[1] = 0  # a context of nothing but padding
SEGMENTS = BATCH | {
    "context_ids": PADDING.reshape(3, 3, 3),
    "context_kinds": np.zeros((3, 3, 3), np.int32),
    "query_segments": np.zeros((3, 2), np.int32),
    "valid": np.array([True, True, False]),
}


def weighted_loss(prediction, weights):
    losses = token_losses(prediction.logits, prediction.labels)
    return mean_per_sample(losses if weights is None else losses * weights, prediction.labels)


def family(config, **options):
    sizes = dict(vocab_size=VOCAB_SIZE, width=8, num_layers=2, num_heads=2, max_positions=40)
    return config(**sizes, init="fan_in", **options)


def models():
    """Models by name, every option of WRITE in one of them."""
    short = dict(num_memory_tokens=3, memory_init_std=1.0, num_write_steps=2)
    neox = family(GPTNeoXConfig, rotary_fraction=0.5, scan_layers=True, remat="dots")
    by_name = {name: small_writer(name) for name in METHODS}
    by_name["gpt2"] = GradMem(
        GradMemConfig(
            lm=family(GPT2Config),
            **short,
            write_lora_rank=2,
            num_control_tokens=1,
            memory_projection="proj",
            learned_write_learning_rate="dimension",
            inner_loss_weight=0.1,
        )
    )
    by_name["gpt_neox"] = GradMem(
        GradMemConfig(
            lm=neox,
            **short,
            write_head=False,
            memory_projection="per_sample",
            learned_write_learning_rate="token",
            clip_value=0.5,
            clip_norm=0.1,
        )
    )
    by_name["reverse"] = small_model(
        meta_gradient="reverse", second_order_steps=1, lm={"dtype": "bfloat16"}
    )
    by_name["optimizer"] = small_model(
        optax.adam(0.1, eps_root=1e-8), lm={"dtype": "bfloat16", "param_dtype": "bfloat16"}
    )
    by_name["own_loss"] = GradMem(small_model().config, write_loss=weighted_loss)
    by_name["rmt_options"] = RMT(
        RMTConfig(
            lm=small_model().config.lm,
            **short,
            memory_projection="proj_rw",
            memory_residual=True,
            inner_loss_weight=0.1,
        )
    )
    by_name["full_context_loss"] = FullContext(
        FullContextConfig(lm=family(GPT2Config), inner_loss_weight=0.1)
    )
    for name in ("armt", "lact", "mamba", "mamba2", "ttt_linear"):
        by_name[f"{name}_bfloat16"] = small_writer(name, lm={"dtype": "bfloat16"})
    for name in METHODS:
        lm = {"dtype": "float16", "param_dtype": "bfloat16"}
        by_name[f"{name}_16_bits"] = small_writer(name, lm=lm)
    return by_name


# Others take the same code.
SLOW = (
    "kv_prefix",
    "warm_start",
    "lact",
    "lact_bfloat16",
    "ttt_linear",
    "mamba",
    "mamba_bfloat16",
    "armt_bfloat16",
    "mamba2_bfloat16",
    "rmt",
    "armt",
    "full_context",
    "reverse",
    "gpt2",
    "gpt_neox",
    "own_loss",
    *(f"{name}_16_bits" for name in METHODS if name != "ttt_linear"),
)
MODELS = models()
OPTIMIZER = optax.adam(0.1)


def write_options(model):
    """Arguments of `write_memory` beside contexts: one of each for each sample."""
    options = dict(num_steps=np.array([1, 0, 2], np.int32))
    if isinstance(model, GradMem):
        options |= dict(loss_tolerance=np.float32(0.1))
        if model.write_loss is not None:
            options |= dict(loss_data=np.ones((3, 9), np.float32))
        if model.write_optimizer is None:
            options |= dict(write_learning_rate=np.array([0.5, 1, 2], np.float32))
    return options


def use(model, params, batch, options, key):
    """Writes, reads and decodes."""
    context_ids, query_ids = batch["context_ids"], batch["query_ids"]
    memory, info = model.write_memory(params, context_ids, **options, max_steps=2)
    more, _ = model.write_memory(params, context_ids, memory=memory)
    logits = model.read_memory(params, more, query_ids)
    greedy = generate(model, params, memory, query_ids, 2, stop_id=3)
    drawn = generate(model, params, memory, query_ids[:, 0], 2, temperature=1.0, key=key)
    return memory, info, logits, greedy, drawn


def train(model, params, batch):
    """One step of the outer loop."""
    return make_train_step(model, OPTIMIZER)(init_state(params, OPTIMIZER), batch)


def evaluate(model, params, batch, num_steps):
    """Evaluates a batch in segments."""
    return evaluate_batch(model, params, batch, num_steps, max_steps=2, num_kinds=2)


class TracingTest(parameterized.TestCase):
    @parameterized.named_parameters((name, name) for name in MODELS)
    @pytest.mark.slow_cases(*SLOW)
    def test_no_types_and_ranks_are_mixed_and_nothing_leaks(self, name):
        model = MODELS[name]
        with (
            jax.numpy_rank_promotion("raise"),
            jax.numpy_dtype_promotion("strict"),
            jax.checking_leaks(),
        ):
            key = jax.random.key(0)
            params = jax.eval_shape(model.init, key)

            def trace(function, *arrays):
                return jax.eval_shape(functools.partial(function, model), params, *arrays)

            trace(use, BATCH, write_options(model), key)
            _, metrics = trace(train, BATCH)
            self.assertEqual(metrics["loss"].shape, ())
            trace(evaluate, SEGMENTS, np.int32(1))

    def test_modes_refuse(self):
        matrix, vector, count = jnp.ones((2, 3)), jnp.ones(3), jnp.ones((2, 3), jnp.int32)
        with jax.numpy_rank_promotion("raise"), self.assertRaises(ValueError):
            _ = matrix + vector
        with (
            jax.numpy_dtype_promotion("strict"),
            self.assertRaises(jax.dtypes.TypePromotionError),
        ):
            _ = matrix + count


class RunningTest(parameterized.TestCase):
    @parameterized.named_parameters((name, name) for name in [*METHODS, "gpt2", "gpt_neox"])
    @pytest.mark.slow_cases(*SLOW)
    def test_arrays_of_the_device_stay_there_and_padding_makes_no_nan(self, name):
        model = MODELS[name]
        on_device = (small_params(model), SEGMENTS, PADDING, write_options(model))
        params, batch, context_ids, options = jax.device_put(on_device)
        with jax.transfer_guard("disallow"), jax.debug_nans(True):
            memory, _ = model.write_memory(params, context_ids, **options, max_steps=2)
            logits = model.read_memory(params, memory, batch["query_ids"])
            (_, params, _), metrics = jax.jit(functools.partial(train, model))(params, batch)
        chex.assert_tree_all_finite((memory, logits, params, metrics))

    def test_numbers_of_python_are_copied_explicitly(self):
        model = MODELS["gradmem"]
        params, batch = jax.device_put((small_params(model), SEGMENTS))
        write = functools.partial(
            write_context, model, params, loss_tolerance=0.1, write_learning_rate=0.5
        )
        with jax.transfer_guard("disallow"):
            got, _ = write(np.asarray(batch["context_ids"]), num_steps=np.array([1, 0, 2]))
            metrics, _ = evaluate(model, params, batch, jax.device_put(np.int32(1)))
        want, _ = write(batch["context_ids"], num_steps=jax.device_put(np.array([1, 0, 2])))
        np.testing.assert_array_equal(got, want)
        chex.assert_tree_all_finite(metrics)

    def test_reconstruct_copies_nothing_and_makes_no_nan(self):
        model = MODELS["gradmem"]
        params, context_ids = jax.device_put((small_params(model), PADDING))
        memory, _ = model.write_memory(params, context_ids)
        with jax.transfer_guard("disallow"), jax.debug_nans(True):
            shown = reconstruct(model, params, memory, context_ids)
        np.testing.assert_array_equal(shown.accuracy[1], 0)

    def test_without_compiling(self):
        model = small_model(num_write_steps=1)
        params = small_params(model)

        def write_and_read():
            memory, _ = model.write_memory(params, PADDING)
            return memory, model.read_memory(params, memory, PADDING[:, :2])

        want = write_and_read()
        with jax.disable_jit(), jax.debug_nans(True):
            got = write_and_read()
        chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    absltest.main()
