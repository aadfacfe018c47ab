import jax
from absl.testing import absltest

from gradmem_jax.parallel.compiling import (
    FEWER_COPIES,
    NO_SPLITTING,
    REDUCE_IN_LOOPS,
    compiler_options,
)


class CompilerOptionsTest(absltest.TestCase):
    def test_unknown_ones_are_left_out(self):
        unheard_of = ("xla_cpu_unheard_of", True)
        bad_value = (REDUCE_IN_LOOPS[0], "SOMETHING_ELSE")
        known = dict([FEWER_COPIES, NO_SPLITTING])
        self.assertEqual(compiler_options(unheard_of, FEWER_COPIES, bad_value, NO_SPLITTING), known)
        self.assertIsNone(compiler_options(unheard_of))
        self.assertEqual(jax.jit(lambda x: x + 1, compiler_options=known)(1), 2)


if __name__ == "__main__":
    absltest.main()
