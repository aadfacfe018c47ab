"""GradMem that starts from a forward write."""

import jax
import numpy as np
from absl.testing import absltest

from tests.small import random_ids, small_params, small_rmt, small_writer

CONTEXT = random_ids(0, 4, 9)


class WarmStartTest(absltest.TestCase):
    def test_starts_from_what_rmt_writes(self):
        options = dict(num_control_tokens=1, write_lora_rank=2, write_lora_alpha=8.0)
        options |= dict(write_lora_targets=("up",), lm={"num_kv_heads": 2})
        model = small_writer("warm_start", num_forward_passes=2, **options)
        rmt = small_rmt(num_write_steps=2, **options)
        params = small_params(model)
        start, _ = jax.jit(rmt.write_memory)(params, CONTEXT)
        memory, _ = model.write_memory(params, CONTEXT, num_steps=0)
        np.testing.assert_allclose(memory, start, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
