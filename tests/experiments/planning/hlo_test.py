"""What a program moves, read from its text: against XLA's own count, and with loops."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import NamedSharding, PartitionSpec

from experiments.planning import hlo
from experiments.planning.flops import count_flops
from gradmem_jax.parallel.sharding import MeshConfig, make_mesh
from tests.small import small_batch, small_model, small_params

# As a compiler for TPUs writes it: a counter that the condition gets from outside, a slice of what
# is stacked, an update in place, and an array that stays in vector memory.
TPU_LOOP = """
HloModule jit_f, is_scheduled=true

%fused (param_0.1: f32[5,8,128], param_1.2: s32[]) -> f32[8,128] {
  %param_0.1 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %param_1.2 = s32[]{:T(128)} parameter(1)
  %constant.1 = s32[]{:T(128)} constant(0)
  %dynamic-slice.1 = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%param_0.1, %param_1.2, %constant.1, %constant.1), dynamic_slice_sizes={1,8,128}
  ROOT %bitcast.1 = f32[8,128]{1,0:T(8,128)S(1)} bitcast(%dynamic-slice.1)
}

%body (param.1: (s32[], f32[5,8,128], f32[5,8,128], s32[])) -> (s32[], f32[5,8,128], f32[5,8,128], s32[]) {
  %param.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  %get-tuple-element.2 = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%param.1), index=1
  %get-tuple-element.3 = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%param.1), index=2
  %get-tuple-element.4 = s32[]{:T(128)} get-tuple-element(%param.1), index=3
  %fusion.1 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%get-tuple-element.2, %get-tuple-element.1), kind=kLoop, calls=%fused
  %all-gather.1 = f32[16,128]{1,0:T(8,128)S(1)} all-gather(%fusion.1), dimensions={0}
  %bitcast.2 = f32[1,8,128]{2,1,0:T(8,128)S(1)} bitcast(%fusion.1)
  %dynamic-update-slice.1 = f32[5,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%get-tuple-element.3, %bitcast.2, %get-tuple-element.1, %get-tuple-element.4, %get-tuple-element.4)
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}) tuple(%get-tuple-element.1, %get-tuple-element.2, %dynamic-update-slice.1, %get-tuple-element.4)
}

%condition (param.2: (s32[], f32[5,8,128], f32[5,8,128], s32[])) -> pred[] {
  %param.2 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %get-tuple-element.5 = s32[]{:T(128)} get-tuple-element(%param.2), index=0
  %get-tuple-element.6 = s32[]{:T(128)} get-tuple-element(%param.2), index=3
  ROOT %compare.1 = pred[]{:T(512)} compare(%get-tuple-element.5, %get-tuple-element.6), direction=LT
}

ENTRY %main (param.3: f32[5,8,128]) -> f32[5,8,128] {
  %param.3 = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %constant.2 = s32[]{:T(128)} constant(0)
  %constant.3 = s32[]{:T(128)} constant(5)
  %copy.1 = s32[]{:T(128)S(1)} copy(%constant.3)
  %copy-start.1 = (f32[5,8,128]{2,1,0:T(8,128)S(1)}, f32[5,8,128]{2,1,0:T(8,128)}, u32[]{:T(128)S(2)}) copy-start(%param.3)
  %copy-done.1 = f32[5,8,128]{2,1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %tuple.2 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}) tuple(%constant.2, %param.3, %param.3, %copy.1)
  %while.1 = (s32[]{:T(128)}, f32[5,8,128]{2,1,0:T(8,128)}, f32[5,8,128]{2,1,0:T(8,128)}, s32[]{:T(128)}) while(%tuple.2), condition=%condition, body=%body
  ROOT %get-tuple-element.7 = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%while.1), index=2
}
"""  # noqa: E501


def compile_text(function, *args):
    return jax.jit(function).lower(*args).compile()


def layers(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x.sum()), x, weights)[0]


class HLOTest(parameterized.TestCase):
    def test_a_loop_of_a_tpu(self):
        row = 8 * 128 * 4
        traffic = hlo.measure(TPU_LOOP)
        # Five times: the slice that is read, the update written; and once what is copied.
        want = 5 * (row + 4) + 5 * 2 * 0 + 5 * row + 4
        self.assertEqual(traffic.collectives, {"all-gather": 5 * 2 * row})
        self.assertAlmostEqual(traffic.memory, want, delta=5 * row + 64)

    def test_as_xla_counts_where_there_is_no_loop(self):
        x, w = jnp.ones((64, 128)), jnp.ones((128, 256))
        compiled = compile_text(lambda x, w: jnp.sin(x @ w).sum(axis=0), x, w)
        want = compiled.cost_analysis()["bytes accessed"]
        self.assertAlmostEqual(hlo.measure(compiled.as_text()).memory / want, 1, delta=0.05)

    def test_the_body_of_a_loop_counts_as_often_as_it_runs(self):
        x = jnp.ones((64, 128))
        moved = [
            hlo.measure(compile_text(layers, x, jnp.ones((n, 128, 128))).as_text()).memory
            for n in (2, 4, 8)
        ]
        first, second = np.diff(moved)
        self.assertAlmostEqual(second / first, 2, delta=0.1)
        self.assertGreater(first, 2 * 128 * 128 * 4)
        self.assertLess(first, 2 * (128 * 128 + 9 * 64 * 128) * 4)

    def test_collectives(self):
        mesh = make_mesh(MeshConfig(data=8))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)
        text = jax.jit(lambda x: x.sum(axis=0)).lower(x).compile().as_text()
        self.assertEqual(hlo.measure(text).collectives, {"all-reduce": 32 * 4})


class FlopsTest(parameterized.TestCase):
    def test_products_and_loops(self):
        x, weights = jnp.ones((4, 8)), jnp.ones((3, 8, 8))
        program = jax.make_jaxpr(layers)(x, weights)
        self.assertEqual(count_flops(program), 3 * 2 * 4 * 8 * 8)

    def test_of_a_model_they_are_those_that_xla_counts(self):
        model = small_model(num_write_steps=1)
        params, batch = small_params(model), small_batch()

        def read(params, memory, ids):
            return model.read_memory(params, memory, ids)

        memory = model.initial_memory(params, 3)
        args = (params, memory, batch["query_ids"][:, 0])
        counted = count_flops(jax.make_jaxpr(read)(*args))
        text = jax.jit(read).lower(*args).compile()
        self.assertAlmostEqual(text.cost_analysis()["flops"] / counted, 1, delta=0.6)
        self.assertGreater(counted, 0)


if __name__ == "__main__":
    absltest.main()
