import json
import pathlib

from absl.testing import absltest, parameterized

from experiments.speed.growth import exponent, growth, memory_by_context, parse_sweeps
from experiments.speed.setting import Setting
from tests.programs import start


class ScalingTest(parameterized.TestCase):
    def test_exponent(self):
        xs = [1, 2, 4, 8]
        self.assertAlmostEqual(exponent(xs, [3 * x**1.5 for x in xs]), 1.5)

    def test_growth_leaves_out_what_failed(self):
        points = [(1, {"seconds": 1.0}), (2, {"seconds": 4.0}), (4, {"error": "no memory"})]
        fits = growth(points)
        self.assertEqual(set(fits), {"seconds"})
        self.assertAlmostEqual(fits["seconds"]["exponent"], 2)

    def test_memory_is_split_into_its_terms(self):
        setting = Setting(batch_size=4, micro_batches=2, num_heads=2)
        mib = lambda s: 5 + 30 * s / 1024 + 3 * (4 * 2 * 2 * s * s) / 2**20
        points = [(s, {"temporary_mib": mib(s)}) for s in (64, 256, 1024)]
        fitted = memory_by_context(setting, points)
        self.assertAlmostEqual(fitted["constant_mib"], 5)
        self.assertAlmostEqual(fitted["kib_per_token"], 30)
        self.assertAlmostEqual(fitted["attention_maps"], 3)
        self.assertIsNone(memory_by_context(setting, points[:2]))

    @parameterized.parameters(
        ("colour=1,2", "choose one of"),
        ("width=8,x", "must be whole numbers"),
        ("width=8", "two values or more"),
    )
    def test_refuses(self, text, message):
        with self.assertRaisesRegex(ValueError, message):
            parse_sweeps([text])

    def test_refuses_a_number_of_parts_that_changes_with_the_sizes(self):
        out = self.create_tempdir().full_path
        done = start("scaling", f"--out={out}/a", "--micro_batches=-1")
        self.assertIn("--micro_batches=-1 would change with the sizes", done.stderr)

    def test_program(self):
        out = pathlib.Path(self.create_tempdir().full_path) / "new" / "scaling"
        done = start(
            *("scaling", f"--out={out}", "--width=8", "--num_layers=1", "--repeats=1"),
            *("--write_steps=1", "--vary=context_tokens=8,16"),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(out.with_suffix(".json").read_text())
        self.assertEqual([value for value, _ in report["rows"]["context_tokens"]], [8, 16])
        for _, row in report["rows"]["context_tokens"]:
            self.assertGreater(row["seconds"], 0)
        self.assertGreater(report["growth"]["context_tokens"]["temporary_mib"]["exponent"], 0)
        self.assertIn("| S | seconds |", out.with_suffix(".md").read_text())
        self.assertStartsWith(out.with_suffix(".png").read_bytes(), b"\x89PNG")

    def test_all_sizes_failed(self):
        out = pathlib.Path(self.create_tempdir().full_path) / "scaling"
        sizes = f"--vary=context_tokens={10**15},{10**16}"
        done = start("scaling", f"--out={out}", sizes, "--repeats=0")
        self.assertEqual(done.returncode, 1)
        self.assertIn("all sizes failed", done.stdout)
        self.assertTrue(out.with_suffix(".json").exists())
        self.assertFalse(out.with_suffix(".png").exists())


if __name__ == "__main__":
    absltest.main()
