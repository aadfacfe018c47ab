"""Plans: for machines that are not here where their compilers are installed, and by one that is."""

import dataclasses
import importlib.util
import json
import pathlib
import types
import unittest
from unittest import mock

import jax
from absl.testing import absltest, parameterized

from experiments.planning import machines, plans, remedies
from experiments.planning.catalogue import catalogue, find_works
from experiments.planning.machines import MACHINES, Machine, Topology
from experiments.planning.step_plan import plan_step
from experiments.planning.work import Work, batch_shapes, works_of_run
from experiments.run.build import build
from gradmem_jax.checks import AUTOMATIC
from gradmem_jax.parallel.sharding import MeshConfig
from tests.experiments.tiny_run import tiny_config
from tests.programs import start
from tests.small import small_model

PLUGINS = {"v5e:2x2": "libtpu", "h200": "jax_cuda12_plugin"}


def here(memory):
    """The CPU devices of tests as a machine with so many bytes each."""
    return Topology("here", Machine("cpu", memory, 1e9, 1e9, {"highest": 1e9}, ""), jax.devices())


SPLIT = MeshConfig(data=2, fsdp=4)


def tiny_work(mesh=SPLIT):
    return Work("tiny", small_model(num_write_steps=1), batch_shapes(16, 9, 5, 2), mesh)


class PlanTest(parameterized.TestCase):
    def test_kinds_of_memory(self):
        plan = plan_step(tiny_work(), here(2**30))
        self.assertTrue(plan.fits)
        shapes = jax.eval_shape(lambda: small_model().init(jax.random.key(0)))
        whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
        self.assertEqual(plan.parameters + plan.gathered, whole)
        self.assertGreater(plan.gathered, whole / 2)
        self.assertAlmostEqual(plan.optimizer / plan.parameters, 2, delta=0.1)
        self.assertGreater(plan.total, plan.parameters + plan.optimizer + plan.temporary)
        self.assertGreater(plan.flops, 0)
        self.assertGreater(plan.collectives["all-gather"], plan.gathered / 2)
        self.assertIn(plan.bound_by, ("compute", "memory"))
        layers = plan_step(tiny_work().with_lm(gather="layer"), here(2**30))
        self.assertBetween(layers.gathered, 1, plan.gathered - 1)
        least = max(plan.flops, plan.moved) / 1e9
        self.assertAlmostEqual(plan.seconds, least)

    def test_what_has_no_room_goes_in_parts_and_else_is_remedied(self):
        one = plan_step(tiny_work(), here(2**30))
        self.assertEqual(one.settings["num_micro_batches"], 1)
        split = plan_step(tiny_work(), here(one.total - 1))
        self.assertEqual(split.settings["num_micro_batches"], 2)
        self.assertLess(split.total, one.total)
        self.assertFalse(plan_step(tiny_work(), here(1)).fits)

    def test_remedies(self):
        work = tiny_work().with_lm(dtype="float32", remat="full")
        found = plan_step(work, here(1))
        tried = []

        def pretend(work, topology):
            tried.append(work.model.config.lm)
            return types.SimpleNamespace(fits=len(tried) == 2, settings=found.settings)

        with mock.patch.object(remedies, "plan_step", pretend):
            remedy = remedies.find_remedy(work, here(1), found)
        self.assertTrue(remedy.fits)
        said = [(lm.remat, lm.gather, lm.dtype) for lm in tried]
        self.assertEqual(said, [("full", "layer", "float32"), ("full", "layer", "bfloat16")])
        self.assertIn("--config.lm.remat=full", remedies.describe(found))
        parts = dataclasses.replace(work, num_micro_batches=2)
        self.assertEqual(next(remedies._changes(parts, found)).num_micro_batches, AUTOMATIC)
        less = next(remedies._changes(tiny_work().with_lm(remat="none"), found))
        self.assertEqual(less.model.config.lm.remat, "full")

    def test_works_of_a_run(self):
        config = tiny_config(batch_size=8)
        works = list(works_of_run(build(config)))
        self.assertLen(works, len(build(config).stages))
        self.assertEqual(works[-1].batch["context_ids"].shape[0], 8)
        self.assertEqual({work.batch_size for work in works_of_run(build(config), 24)}, {24})

    def test_catalogue(self):
        works = catalogue(4)
        self.assertTrue(all(name == work.name for name, work in works.items()))
        self.assertEqual(works["llama_1b_k2"].batch_size, 4)
        self.assertEqual(works["kv_n32_k2"].model.config.num_write_steps, 2)
        self.assertLen(find_works("kv_n4_*", 1), 3)
        self.assertLen(find_works("kv_n8_k1,kv_n4_*,kv_n4_k1", 1), 4)
        with self.assertRaisesRegex(ValueError, "fits none of kv_n4_k1"):
            find_works("kv_*,nothing", 1)

    @parameterized.parameters(
        ("v9:2x2", "machines are v4"), ("v5e:2y2", "must be like"), ("h200:a", "must be like")
    )
    def test_topologies_that_are_none(self, name, message):
        with self.assertRaisesRegex(ValueError, message):
            machines.open_topology(name)

    @parameterized.parameters(("v5e", 1), ("v5e:1x1", 1), ("v5e:2", 2), ("v5e:2x2", 4))
    def test_slices_of_a_host(self, name, count):
        if importlib.util.find_spec("libtpu") is None:
            raise unittest.SkipTest("libtpu is not installed: pip install '.[tpu]'")
        self.assertLen(machines.open_topology(name).devices, count)

    @parameterized.parameters(("v5e", "tpu"), ("h100:8", "gpu"))
    def test_a_compiler_that_is_not_installed(self, name, extra):
        with (
            mock.patch.object(importlib.util, "find_spec", lambda _: None),
            self.assertRaisesRegex(ValueError, rf"not installed; pip install .*\[{extra}\]"),
        ):
            machines.open_topology(name)

    def test_facts(self):
        for name, machine in MACHINES.items():
            self.assertRegex(machine.source, "^https://", name)
            flops = [machine.peak("float32", name) for name in ("highest", "high", "default")]
            self.assertEqual(flops, sorted(flops), name)
            self.assertGreaterEqual(machine.peak("bfloat16", "highest"), flops[-1])
            self.assertLessEqual(machine.usable, machine.memory)

    def test_what_is_written(self):
        out = pathlib.Path(self.create_tempdir().full_path) / "plans"
        topology = here(2**30)._replace(devices=jax.devices()[:1])
        work = plans.changed(tiny_work(MeshConfig()), ["remat=full", "dtype=bfloat16"], 4)
        plans.write_plans(out, list(plans.make_plans([work], topology, remedies=False)))
        content = json.loads(out.with_suffix(".json").read_text())
        self.assertEqual(content["version"], 1)
        (found,) = content["plans"]
        self.assertEqual((found["work"], found["fits"]), ("tiny", True))
        want = {"remat": "full", "dtype": "bfloat16", "num_micro_batches": 4, "gather": "step"}
        want |= {"matmul_precision": "highest"}
        self.assertEqual(found["settings"], want)
        self.assertIn("| tiny | here | 16 | 4 | full |", out.with_suffix(".md").read_text())

    def test_a_step_that_fits_comes_behind_one_that_does_not(self):
        found = [
            types.SimpleNamespace(fits=fits, work="w", topology="t", total=1, settings={})
            for fits in (False, True)
        ]
        with (
            mock.patch.object(plans, "plan_step", return_value=found[0]),
            mock.patch.object(plans, "find_remedy", return_value=found[1]),
        ):
            self.assertEqual(list(plans.make_plans([None], None, remedies=True)), found)
            self.assertEqual(list(plans.make_plans([None], None, remedies=False)), found[:1])

    def test_batch_sizes(self):
        found = list(plans.works_by_batch_size(lambda size: [size, size], [4, 8]))
        self.assertEqual(found, [4, 4, 8, 8])
        self.assertEqual(list(plans.works_by_batch_size(lambda size: [size], [])), [None])
        with self.assertRaisesRegex(ValueError, "--batch_sizes=0,4 must be 1 or more"):
            list(plans.works_by_batch_size(lambda size: [size], [0, 4]))

    @parameterized.parameters("remat", "depth=full", "remat=little", "num_layers=2")
    def test_settings_that_cannot_be_changed(self, bad):
        with self.assertRaisesRegex(ValueError, "--lm=|remat='little' is not known"):
            plans.changed(tiny_work(), [bad])

    @parameterized.parameters(*PLUGINS)
    def test_a_machine_that_is_not_here(self, name):
        if importlib.util.find_spec(PLUGINS[name]) is None:
            raise unittest.SkipTest(f"{PLUGINS[name]} is not installed: pip install '.[tpu,gpu]'")
        out = pathlib.Path(self.create_tempdir().full_path) / "plans"
        done = start("plan", "--work=kv_n4_k1", f"--topology={name}", f"--out={out}")
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        content = json.loads(out.with_suffix(".json").read_text())
        self.assertEqual(content["version"], 1)
        (found,) = content["plans"]
        self.assertTrue(found["fits"])
        self.assertLess(found["total"], 2**30)
        self.assertGreater(found["moved"], found["parameters"])

    def test_a_second_machine_that_is_none_is_refused_before_the_first_is_planned(self):
        if importlib.util.find_spec("libtpu") is None:
            raise unittest.SkipTest("libtpu is not installed: pip install '.[tpu]'")
        out = pathlib.Path(self.create_tempdir().full_path) / "plans"
        done = start("plan", "--work=kv_n4_k1", "--topology=v5e,v9", f"--out={out}")
        self.assertEqual(done.returncode, 1)
        self.assertIn("machines are v4", done.stderr)
        self.assertFalse(out.with_suffix(".json").exists())


if __name__ == "__main__":
    absltest.main()
