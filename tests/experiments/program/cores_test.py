"""Cores as devices: how many, and who may say otherwise."""

import os
from unittest import mock

import jax
from absl.testing import absltest, parameterized

from experiments.program import cores
from gradmem_jax.parallel.sharding import MeshConfig
from tests.programs import start


class CoresTest(parameterized.TestCase):
    @parameterized.parameters(
        (1, 32, {}, 1),
        (2, 32, {}, 2),
        (12, 32, {}, 8),
        (4, 7, {}, 1),
        (64, 64, {}, 64),
        (8, 4, {"tensor": 2}, 8),
        (8, 2, {"tensor": 2}, 4),
        (3, 32, {"fsdp": 2}, 2),
        (8, 6, {"data": 2, "fsdp": -1}, 6),
        (8, 6, {"data": 2, "tensor": -1}, 8),
        (8, 32, {"data": 1, "fsdp": 2, "tensor": 2}, 4),
        (2, 32, {"data": 4}, 2),  # find_devices says that there are too few
    )
    def test_as_many_as_mesh_and_batch_divide_over(self, num_cores, batch_size, mesh, want):
        with mock.patch.object(cores, "count_cores", return_value=num_cores):
            self.assertEqual(cores.count_devices(-1, batch_size, MeshConfig(**mesh)), want)

    def test_as_many_as_asked_for(self):
        self.assertEqual(cores.count_devices(3, 32), 3)
        for bad in (0, -2, 1.5, "2"):
            with self.assertRaisesRegex(ValueError, f"cpu_devices={bad!r} must be .* -1 has it"):
                cores.count_devices(bad, 32)

    @parameterized.parameters(
        ({}, 5),
        ({"XLA_FLAGS": "--xla_dump_to=/tmp"}, 5),
        ({"JAX_NUM_CPU_DEVICES": "3"}, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, None),
    )
    def test_the_environment_comes_first(self, environment, want):
        self.assertEqual(made_devices(environment), want)

    def test_processes_of_many_are_left_alone(self):
        with mock.patch.object(jax.distributed, "is_initialized", return_value=True):
            self.assertIsNone(made_devices({}))

    @parameterized.parameters(([], -1), (["--config.cpu_devices=1"], 1))
    def test_a_run_has_a_device_for_each_core(self, flags, cpu_devices):
        folder = self.create_tempdir().full_path
        sizes = {"num_steps": 2, "batch_size": 4, "log_every": 1, "evaluate_every": 2}
        sizes |= {"num_eval_samples": 4, "lm.width": 8, "lm.num_layers": 1, "lm.num_heads": 2}
        sizes |= {"data.num_pairs": 2, "data.queries_per_context": 1, "optimizer.warmup_steps": 0}
        sizes |= {"model.num_write_steps": 1}
        words = [f"--config.{name}={value}" for name, value in sizes.items()]
        words += ["--config.final_num_write_steps=(0,)", *flags]
        done = start("train", f"--workdir={folder}/run", *words, devices=None)
        self.assertEqual(done.returncode, 0, done.stderr)
        number = cores.count_devices(cpu_devices, 4)
        self.assertIn(f"parameters on {number} cpu;", done.stdout + done.stderr)


def made_devices(environment):
    """What `make_devices` sets in an environment, None if nothing."""
    hidden = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    rest = {name: value for name, value in os.environ.items() if name not in hidden}
    with (
        mock.patch.dict(os.environ, rest | environment, clear=True),
        mock.patch.object(jax.config, "update") as update,
    ):
        cores.make_devices(5, 32, {})
    return update.call_args.args[1] if update.called else None


if __name__ == "__main__":
    absltest.main()
