"""What is measured while a device is there: in order, written as it comes, within the time."""

import json
import pathlib

import pytest
from absl.testing import absltest, parameterized

from experiments.speed import attention, child_processes, device_parts
from experiments.speed.device_parts import TINY, Part
from experiments.speed.reference import Reference
from tests.programs import start


class MeasureDeviceTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.out = pathlib.Path(self.create_tempdir().full_path)

    def results(self):
        content = json.loads((self.out / "results.json").read_text())
        self.assertEqual(content["version"], 1)
        return content["parts"]

    def test_each_result_is_there_before_the_next_is_measured(self):
        limits = []

        def first(seconds):
            limits.append(seconds)
            return {"seconds": 0.5, "loss": 2.0}

        def last(seconds):
            limits.append(seconds)
            self.assertEqual([row["part"] for row in self.results()], ["a"])
            return {"error": "ended | here"}

        parts = [Part("a", first), Part("training", last)]
        found = device_parts.measure_all(iter(parts), self.out, 100)
        self.assertEqual(found, self.results())
        self.assertEqual((found[0]["seconds"], found[1]["error"]), (0.5, "ended | here"))
        self.assertBetween(limits[0], 20, 25)
        self.assertBetween(limits[1], 95, 100)
        table = (self.out / "results.md").read_text().splitlines()
        self.assertLen(table, 4)
        self.assertIn("loss 2.0", table[2])
        self.assertIn("ended / here", table[3])
        with self.assertRaisesRegex(ValueError, "--out=.* has results already; choose another"):
            device_parts.measure_all(iter([Part("a", self.fail)]), self.out, 100)

    def test_nothing_begins_without_time(self):
        found = device_parts.measure_all(iter([Part("a", self.fail)]), self.out, 5)
        self.assertEqual(found[0]["error"], "no time was left")

    def test_a_child_that_takes_too_long(self):
        found = child_processes.run_json(["sleep", "30"], 0.2)
        self.assertEqual(found, {"error": "ended after 0 s, the time that it had"})

    def test_the_official_code_goes_first(self):
        reference = Reference("folder", "python", "cuda")
        names = [part.name for part in device_parts.parts(TINY, reference, self.out)]
        self.assertEqual(names[0], "golden cases")
        self.assertEqual(names[1], f"{names[2]}, official")
        self.assertEqual(names[-1], "training")

    @parameterized.parameters("xla", "auto", "pallas")
    def test_attention(self, implementation):
        found = attention.measure([1, 9, 2, 1, 8], implementation, "float32", 1)
        self.assertEqual(found["seconds"], found["second_order_seconds"])
        self.assertGreater(found["forward_seconds"], 0)

    @pytest.mark.slow
    def test_the_program(self):
        done = start("measure_device", f"--out={self.out}", "--size=tiny", "--minutes=8")
        self.assertEqual(done.returncode, 0, done.stderr)
        found = {row["part"]: row for row in self.results()}
        self.assertLess(max(found["golden cases"]["worst"].values()), 1e-4)
        self.assertNotIn("error", found["paper's KV model, K = 1"])
        self.assertIn("step", found["training"]["last_line"])


if __name__ == "__main__":
    absltest.main()
