"""GradMem against numbers of the official implementation (tests/golden/README.md)."""

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import GradMem, ProjectedMemory
from gradmem_jax.training import loss_and_metrics
from tests.golden_cases import case_names, load_case


def assert_gradients_close(got, want):
    """Asserts closeness by norm for every array whose norm is not tiny, by element always."""
    chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-5)

    def check(path, got, want):
        if np.linalg.norm(want) > 1e-4:
            distance = np.linalg.norm(got - want) / np.linalg.norm(want)
            assert distance < 1e-4, f"{jax.tree_util.keystr(path)}: {distance:.1e}"

    jax.tree_util.tree_map_with_path(check, got, want)


class ParityTest(parameterized.TestCase):
    @parameterized.product(
        name=case_names("gradmem_llama_*"),
        implementation=("mixed", "reverse", "mixed_scan_layers_remat"),
    )
    def test_matches_official_implementation(self, name, implementation):
        lm = {}
        if implementation == "mixed_scan_layers_remat":
            lm = dict(scan_layers=True, remat="full")
        case = load_case(name, lm=lm, meta_gradient=implementation.split("_")[0])
        model, io = GradMem(case.config), case.io

        memory, info = jax.jit(model.write_memory)(case.params, io["context_ids"])
        logits = jax.jit(model.read_memory)(case.params, memory, io["query_ids"])
        tokens, norms = memory, info.gradient_norms
        if isinstance(memory, ProjectedMemory):
            kernel = np.swapaxes(io["fast_W"], 1, 2)
            chex.assert_trees_all_close(memory.kernel, kernel, rtol=1e-4, atol=1e-5)
            chex.assert_trees_all_close(memory.bias, io["fast_b"], rtol=1e-4, atol=1e-5)
            tokens, norms = memory.tokens, norms.tokens
        close = lambda got, want: chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)
        close(tokens, io["memory"])
        close(logits, io["logits"])
        close(info.losses[-1].mean(), io["stat.inner_loss"][0])
        close(norms.mean(), io["stat.inner_grad_norm_mean"][0])

        batch = {name: io[name] for name in ("context_ids", "query_ids", "labels")}
        gradient_fn = jax.jit(jax.grad(lambda p: loss_and_metrics(model, p, batch), has_aux=True))
        loss_fn = jax.jit(lambda p: loss_and_metrics(model, p, batch))
        loss, metrics = loss_fn(case.params)
        close(loss, io["loss"][0])
        close(metrics["read_loss"], io["stat.target_loss"][0])
        gradients, _ = gradient_fn(case.params)
        assert_gradients_close(jax.device_get(gradients), case.gradients)


if __name__ == "__main__":
    absltest.main()
