"""Lists of runs: chains and seeds."""

from absl.testing import absltest

from experiments.sweeps.run_list import Run, chain, seeds


class RunListTest(absltest.TestCase):
    def test_helpers(self):
        runs = seeds(chain([Run("a", "c"), Run("b", "c", {"x": 1})], stop_below=0.5), (3, 4))
        self.assertEqual(
            runs,
            [
                Run("a_seed3", "c", {"seed": 3}),
                Run("b_seed3", "c", {"x": 1, "seed": 3}, "a_seed3", 0.5),
                Run("a_seed4", "c", {"seed": 4}),
                Run("b_seed4", "c", {"x": 1, "seed": 4}, "a_seed4", 0.5),
            ],
        )
        self.assertEqual(chain([]), [])


if __name__ == "__main__":
    absltest.main()
