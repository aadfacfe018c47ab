"""Cells of the paper's tables on natural language."""

from absl.testing import absltest, parameterized

from experiments.configs import text_paper


class TextPaperTest(parameterized.TestCase):
    @parameterized.parameters(
        *(f"qa{i}_{method}" for i in (1, 5) for method in ("gradmem_k2", "rmt", "mamba")),
        *(f"squad_{method}" for method in ("gradmem_k1", "gradmem_k5", "armt", "full_context")),
        *(f"lm_{method}" for method in ("gradmem_k2", "rmt", "mamba", "full_context", "limited")),
        *("spans16_gradmem_k2_m2", "spans8_gradmem_k1_m1", "spans32_gradmem_k2_m2_frozen"),
    )
    def test_cells_of_the_paper(self, cell):
        config = text_paper.get_config(cell)
        self.assertEqual(config.best_metric == "read_loss", cell.startswith("lm"))
        self.assertEqual(bool(config.frozen), cell.startswith("spans"))

    @parameterized.parameters("qa_gradmem", "squad", "lm_gradmem_2", "spans_rmt", "squad_lstm")
    def test_cells_that_are_none(self, cell):
        with self.assertRaisesRegex(ValueError, "must look like"):
            text_paper.get_config(cell)


if __name__ == "__main__":
    absltest.main()
