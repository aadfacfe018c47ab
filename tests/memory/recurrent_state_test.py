"""A state as memory: WRITE and READ are the language model, cut in two."""

import dataclasses

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.lm.mamba import MambaConfig
from gradmem_jax.lm.mamba2 import Mamba2Config
from gradmem_jax.lm.ttt_linear import TTTLinearConfig
from gradmem_jax.memory.recurrent_state import StateSpace, StateSpaceConfig
from gradmem_jax.memory.segments import write_context
from tests.small import random_ids, small_params

LENGTHS = np.array([10, 7, 4])


class StateSpaceTest(parameterized.TestCase):
    @parameterized.parameters(
        MambaConfig(vocab_size=11, width=8, num_layers=1, init="fan_in", chunk_size=4),
        Mamba2Config(
            vocab_size=11, width=8, num_layers=1, init="fan_in", head_width=4, chunk_size=4
        ),
        TTTLinearConfig(
            vocab_size=11, width=8, num_layers=1, init="fan_in", num_heads=2, mini_batch_size=4
        ),
    )
    def test_write_and_read_are_one_run_of_the_model(self, config):
        model = StateSpace(StateSpaceConfig(lm=config))
        params = small_params(model)
        tokens, queries = random_ids(0, 3, 10), random_ids(1, 3, 2, 6)
        contexts = np.where(np.arange(10) < LENGTHS[:, None], tokens, 0)
        queries[1, 1, 4:] = 0
        memory, info = jax.jit(model.write_memory)(params, contexts)
        np.testing.assert_array_equal(info.num_steps, 1)
        logits = jax.jit(model.read_memory)(params, memory, queries)
        everything = jax.jit(
            lambda ids: model.lm.apply({"params": params["lm"]}, ids, method="everything")
        )
        for i in range(3):
            for r in range(2):
                num = (queries[i, r] > 0).sum()
                ids = np.concatenate([contexts[i, : LENGTHS[i]], queries[i, r, :num]])
                padded = np.zeros((1, 16), int)  # what is behind does not matter
                padded[0, : len(ids)] = ids
                want = everything(padded)[0, LENGTHS[i] - 1 : len(ids)]
                np.testing.assert_allclose(logits[i, r, : num + 1], want, rtol=1e-4, atol=1e-4)

    @parameterized.parameters(MambaConfig, Mamba2Config, TTTLinearConfig)
    def test_a_state_without_earlier_inputs_is_written_on_in_parts(self, config):
        sizes = dict(vocab_size=11, width=8, num_layers=1, init="fan_in", conv_size=1)
        sizes |= {"head_width": 4} if config is Mamba2Config else {}
        model = StateSpace(StateSpaceConfig(lm=config(**sizes)), num_write_parts=1)
        in_two = dataclasses.replace(model, num_write_parts=2)
        params, contexts = small_params(model), random_ids(0, 4, 2, 3)
        want, got = (write_context(x, params, contexts)[0] for x in (model, in_two))
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
        self.assertIn(0, {x.size for x in jax.tree.leaves(want)})

    def test_there_is_no_write_loss(self):
        with self.assertRaisesRegex(ValueError, "inner_loss_weight=0.5 must be 0"):
            StateSpaceConfig(lm=MambaConfig(vocab_size=11), inner_loss_weight=0.5)


if __name__ == "__main__":
    absltest.main()
