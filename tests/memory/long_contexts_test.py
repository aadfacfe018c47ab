"""Training through contexts that are long: blocks of attention, some tokens after the others."""

import contextlib
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import losses
from gradmem_jax.lm import attention, language_model
from gradmem_jax.memory import programs
from gradmem_jax.training.step import loss_gradient
from tests.small import small_batch, small_params, small_writer


@contextlib.contextmanager
def everything_is_long():
    """As if every context were too long for attention, logits and MLPs to be made whole."""
    with (
        mock.patch.multiple(
            attention, query_rows=lambda *_: 16, block_size=lambda *_: 4, LARGEST_SAVED=0
        ),
        mock.patch.multiple(losses, LARGEST_LOGITS=0, CHUNK_LOGITS=1, SHORTEST_CHUNK=4),
        mock.patch.object(programs, "_values_of", lambda _: {}),  # nothing compiled before is used
        mock.patch.multiple(language_model, _LARGEST_HIDDEN=0, _CHUNK_BYTES=0, _FEWEST_TOKENS=4),
    ):
        yield


class LongContextsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("gradmem", "gradmem", {}, {}),
        ("layers_scanned_and_rematted", "gradmem", {"scan_layers": True, "remat": "full"}, {}),
        ("reverse_over_reverse", "gradmem", {}, {"meta_gradient": "reverse"}),
        ("queries_only", "gradmem", {"attention": "xla"}, {"inner_loss_weight": 0.5}),
        ("rmt", "rmt", {}, {"inner_loss_weight": 0.5}),
        ("full_context", "full_context", {}, {}),
    )
    def test_loss_and_gradient_are_those_of_whole_arrays(self, method, lm, changes):
        self.enter_context(jax.enable_x64(True))
        types = {"dtype": "float64", "param_dtype": "float64"}
        model = small_writer(method, lm=types | lm, **changes)
        params, batch = small_params(model), small_batch(2)
        batch["context_ids"] = np.random.default_rng(0).integers(1, 8, (2, 23))
        batch["context_ids"][1, 19:] = 0

        def gradient():
            return jax.jit(lambda params, batch: loss_gradient(model, params, batch, 1))

        whole = gradient()(params, batch)
        with everything_is_long():
            program = gradient().lower(params, batch)
            parts = program.compile()(params, batch)
        self.assertNotEqual(program.as_text(), gradient().lower(params, batch).as_text())
        chex.assert_trees_all_close(parts, whole, rtol=1e-7, atol=1e-10)


if __name__ == "__main__":
    absltest.main()
