"""Memories of Llama's relatives: windows, layers that differ, lengths that change positions."""

import dataclasses
import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax.traverse_util import flatten_dict

from gradmem_jax import (
    RMT,
    FullContext,
    FullContextConfig,
    GradMem,
    GradMemConfig,
    KVPrefix,
    KVPrefixConfig,
    LlamaConfig,
    RMTConfig,
    generate,
    load_pretrained,
)
from gradmem_jax.lm.families import make_lm
from gradmem_jax.parallel.sharding import logical_axes

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NAMES = ("llama_bias", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "smollm3", "phi3")
IDS = np.random.default_rng(0).integers(1, 48, (2, 24), np.int32)
QUERIES = np.random.default_rng(1).integers(1, 48, (2, 5), np.int32)


def load(name, **changes):
    return load_pretrained(GOLDEN / f"lm_{name}", max_positions=64, **changes)


def written(model, params):
    """A memory, what it predicts, and the gradient of that, in one program."""

    @jax.jit
    def run(params):
        def loss(params):
            memory, _ = model.write_memory(params, IDS)
            logits = model.read_memory(params, memory, QUERIES)
            return jnp.square(logits).mean(), (memory, logits)

        gradient, found = jax.grad(loss, has_aux=True)(params)
        return found, gradient["initial_memory"]

    return run(params)


def check_stacked_layers(model_class, config_class, name):
    """Single layers may compute the first one's attention apart; stacked ones never do."""
    found = []
    for scan_layers in (False, True):
        lm = load(name, scan_layers=scan_layers)
        options = dict(lm=lm.config, num_memory_tokens=3, write_lora_rank=2)
        model = model_class(config_class(**options))
        found.append(written(model, model.init(jax.random.key(0), lm.params)))
    scaled = [jax.tree.map(lambda x, y: x / np.abs(y).max(), x, found[0]) for x in found]
    chex.assert_trees_all_close(*scaled, atol=1e-4)


class RelativesMemoryTest(parameterized.TestCase):
    def test_stacked_layers_and_single_ones_write_the_same(self):
        check_stacked_layers(RMT, RMTConfig, "gemma3")

    @parameterized.named_parameters(
        *((name, name, {}) for name in ("llama_bias", "qwen3", "gemma2", "olmo2", "smollm3")),
        ("gemma3", "gemma3", dict(window=40, remat="full")),
    )
    @pytest.mark.slow_cases("llama_bias", "qwen3")  # olmo2 has norms of queries and keys too
    def test_write_and_read(self, name, changes):
        lm = load(name, **changes)
        model = GradMem(GradMemConfig(lm=lm.config, num_memory_tokens=3))
        params = model.init(jax.random.key(0), lm.params)

        @jax.jit
        def run(params):
            memory, info = model.write_memory(params, IDS)
            logits = model.read_memory(params, memory, QUERIES)
            losses = model.write_token_losses(params, memory, IDS)
            return memory, logits, losses.mean(), info.losses[0].mean()

        memory, logits, after, before = run(params)
        chex.assert_tree_all_finite((memory, logits))
        self.assertLess(after, before)

    def test_contexts_of_different_lengths_under_a_window(self):
        """The shorter one, padded, is read with its cache as alone."""
        lm = load("mistral")
        model = FullContext(FullContextConfig(lm=lm.config, pad_id=0))
        params, contexts = {"lm": lm.params}, IDS[:, :19].copy()
        contexts[1, 10:] = 0

        @jax.jit
        def answers(contexts, queries):
            memory, _ = model.write_memory(params, contexts)
            ids = generate(model, params, memory, queries, 12)
            return model.read_memory(params, memory, queries), ids

        logits, ids = (x[1:] for x in answers(contexts, QUERIES))
        alone, alone_ids = answers(contexts[1:, :10], QUERIES[1:])
        np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(ids, alone_ids)

    @parameterized.parameters("mistral", "gemma3")
    def test_a_window_counts_memory_and_tokens_alike(self, name):
        """With one layer of 8 tokens, what stands further back changes nothing."""
        config = dataclasses.replace(load(name).config, num_layers=1, window_layers=())
        lm = make_lm(config)
        params = jax.jit(lambda key: lm.init(key, IDS, method="everything"))(jax.random.key(0))
        run = jax.jit(lambda x: lm.apply(params, x)[0])
        embeddings = jnp.asarray(np.random.default_rng(2).normal(size=(1, 40, 16)), jnp.float32)
        for start in (0, 3, 20):
            moved = run(embeddings.at[:, start].add(1.0))
            changed = np.abs(run(embeddings) - moved).max(axis=(0, 2))
            seen = np.arange(40) - start
            np.testing.assert_array_equal(changed > 1e-6, (seen >= 0) & (seen < 8))

    def test_long_contexts_in_parts(self):
        """Beyond 1024 tokens attention goes in parts, with windows and soft caps too."""
        config = LlamaConfig(
            vocab_size=48, width=8, num_layers=2, num_heads=2, window=300, window_layers=(1,)
        )
        lm, x = make_lm(config), jax.random.normal(jax.random.key(1), (1, 1500, 8))
        params = jax.jit(lambda key: lm.init(key, IDS, method="everything"))(jax.random.key(0))
        causal = np.tril(np.ones((1500, 1500), bool))[None, None]
        got, want = (
            jax.jit(functools.partial(lm.apply, params, mask=mask))(x)[0] for mask in (None, causal)
        )
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    def test_axes_of_parameters(self):
        for name in NAMES:
            params = load(name).params
            for path, x in flatten_dict(params, sep="/").items():
                axes = logical_axes(f"lm/{path}", x.ndim)
                if path.endswith("bias"):
                    part = path.split("/")[-2]
                    first = {"output": None, "down": None, "gate": "mlp", "up": "mlp"}
                    self.assertEqual(axes[0], first.get(part, "heads"), path)
                self.assertEqual(path.endswith(("kernel", "embedding", "head")), "embed" in axes)


@pytest.mark.slow
class StackedLayersTest(parameterized.TestCase):
    @parameterized.parameters(
        *((GradMem, GradMemConfig, name) for name in ("mistral", "gemma3", "phi3")),
        (KVPrefix, KVPrefixConfig, "gemma3"),
    )
    def test_stacked_layers_of_other_methods(self, *case):
        check_stacked_layers(*case)


if __name__ == "__main__":
    absltest.main()
