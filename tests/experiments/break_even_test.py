import json
import pathlib

from absl.testing import absltest, parameterized

from experiments.speed.latency import crossing, tables, totals
from tests.programs import start

SECONDS = {"write_seconds": 9.0, "read_seconds": 1.0, "prefill_seconds": 3.0, "query_seconds": 4.0}


class BreakEvenTest(parameterized.TestCase):
    def test_crossing_is_where_the_totals_meet(self):
        self.assertEqual(crossing(SECONDS), 2)
        total = totals(SECONDS, [1, 2, 3])
        self.assertEqual(total, {"memory": [10, 11, 12], "cache": [7, 11, 15]})

    @parameterized.parameters(({"query_seconds": 1.0}, None), ({"write_seconds": 2.0}, 0))
    def test_crossing_at_the_ends(self, change, expected):
        self.assertEqual(crossing(SECONDS | change), expected)

    def test_table_shows_what_failed(self):
        sizes = {"memory_bytes": 1024, "cache_bytes": 2048}
        text = tables([(8, SECONDS | sizes), (16, {"error": "no memory"})], [2])
        self.assertIn("| 8 | 9000 | 1000 | 3000 | 4000 | 1 | 2 | 2 |", text)
        self.assertIn("| 16 | no memory |", text)

    def test_program(self):
        out = pathlib.Path(self.create_tempdir().full_path) / "new" / "break_even"
        done = start(
            *("break_even", f"--out={out}", "--width=8", "--num_layers=1", "--num_heads=2"),
            *("--batch_size=4", "--repeats=1", "--query_tokens=5"),
            *("--context_tokens=16", "--queries=1,4"),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(out.with_suffix(".json").read_text())
        self.assertEqual(set(report["by_context_tokens"]), {"16"})
        for length, row in report["by_context_tokens"].items():
            self.assertEqual(row["memory_bytes"], 4 * 8 * 8)
            self.assertEqual(row["cache_bytes"], 4 * 2 * 8 * int(length))
            expected = row["write_seconds"] + 4 * row["read_seconds"]
            self.assertAlmostEqual(row["total_seconds"]["memory"][1], expected)
        self.assertIn("| c | WRITE ms |", out.with_suffix(".md").read_text())
        self.assertStartsWith(out.with_suffix(".png").read_bytes(), b"\x89PNG")

    def test_all_lengths_failed(self):
        out = pathlib.Path(self.create_tempdir().full_path) / "break_even"
        done = start("break_even", f"--out={out}", f"--context_tokens={10**15}")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stdout, r"\| 10{15} \| .*(?s:.*)all context lengths failed")
        self.assertTrue(out.with_suffix(".json").exists())
        self.assertFalse(out.with_suffix(".png").exists())

    def test_is_measured_on_one_device(self):
        done = start("break_even", "--out=/nowhere/a", "--cpu_devices=2")
        self.assertIn("Unknown command line flag 'cpu_devices'", done.stderr)


if __name__ == "__main__":
    absltest.main()
