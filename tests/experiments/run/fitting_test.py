"""Into how many parts a batch goes where a device has little room."""

import pathlib
import types
from unittest import mock

import jax
from absl.testing import absltest, parameterized

from experiments.program.console import log
from experiments.run import fitting, whole_run
from experiments.run.build import build
from gradmem_jax.checks import AUTOMATIC
from tests.experiments.tiny_run import tiny_config

COUNTS = fitting.divisors(12)


class Program:
    """A step of `count` parts of 12 samples, each of which takes 10 bytes beside 20."""

    tried: list[int] = []

    def __init__(self, count, remat="none", error=None):
        self.count, self._error = count, error
        self._per_part = {"none": 120, "full": 60}[remat]
        self.tried.append(count if remat == "none" else -count)

    def compile(self):
        if self._error and self.count < 4:
            raise jax.errors.JaxRuntimeError(self._error)
        return self

    def memory_analysis(self):
        return types.SimpleNamespace(
            argument_size_in_bytes=20,
            output_size_in_bytes=15,
            alias_size_in_bytes=15,
            temp_size_in_bytes=self._per_part // self.count,
        )


class FittingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        Program.tried = []

    @parameterized.parameters(
        (None, 1, [1]), (140, 1, [1]), (139, 2, [1, 2]), (50, 4, [1, 2, 4]), (30, 12, [1, 4, 12])
    )
    def test_as_few_parts_as_there_is_room_for(self, room, want, tried):
        found = fitting.compile_to_fit(Program, COUNTS, ["none"], room)
        self.assertEqual((found.step.count, found.num_parts), (want, want))
        self.assertEqual(Program.tried, tried)

    @parameterized.parameters(
        (None, 1, "none"), (140, 1, "none"), (30, 12, "none"), (29, 12, "full"), (25, 12, "full")
    )
    def test_recomputes_where_one_sample_at_a_time_has_no_room(self, room, parts, remat):
        found = fitting.compile_to_fit(Program, COUNTS, fitting.remats("auto"), room)
        self.assertEqual(found[1:], (parts, remat))

    def test_a_number_of_parts_that_is_given(self):
        found = fitting.compile_to_fit(Program, [2], fitting.remats("auto"), 60)
        self.assertEqual(found[1:], (2, "full"))
        self.assertEqual(Program.tried, [2, -2])

    def test_one_sample_at_a_time_is_the_last_try(self):
        self.assertEqual(fitting.compile_to_fit(Program, COUNTS, ["none"], 1).num_parts, 12)

    @parameterized.parameters(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 15.85G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (16.16G) exceeds available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.",
    )
    def test_a_compiler_that_finds_no_room(self, text):
        found = fitting.bytes_without_room(jax.errors.JaxRuntimeError(text))
        self.assertAlmostEqual(found / 2**30, 16, delta=0.2)

        def lower(count, remat):
            return Program(count, remat, text)

        found = fitting.compile_to_fit(lower, COUNTS, ["none", "full"], 2**34)
        self.assertEqual(found[1:], (4, "none"))
        no_room = self.assertRaisesRegex(jax.errors.JaxRuntimeError, "RESOURCE_EXHAUSTED")
        with no_room, self.assertLogs(log, "INFO") as logs:
            fitting.compile_to_fit(lower, [1, 2], ["none", "full"], 2**34)
        self.assertIn("2 parts of a batch, remat=full: ", logs.output[-1])
        with no_room, self.assertLogs(log, "INFO") as logs:  # no device says how much there is
            fitting.compile_to_fit(lower, [AUTOMATIC], ["none"], None)
        self.assertIn(":a batch, remat=none: ", logs.output[0])

    def test_other_errors_are_errors(self):
        def lower(count, remat):
            return Program(count, remat, "INTERNAL: no")

        with self.assertRaisesRegex(jax.errors.JaxRuntimeError, "INTERNAL"):
            fitting.compile_to_fit(lower, COUNTS, ["none"], 100)

    def test_a_run_on_a_device_with_little_memory(self):
        plan = build(tiny_config(num_steps=2, num_micro_batches=-1, cpu_devices=1))
        folder = self.create_tempdir().full_path
        with (
            mock.patch.object(fitting, "device_memory", lambda mesh: 1),
            self.assertLogs(log, "INFO") as logs,
        ):
            whole_run.train(plan, pathlib.Path(folder) / "run")
        self.assertRegex("\n".join(logs.output), r"in 1 parts, remat=full")


if __name__ == "__main__":
    absltest.main()
