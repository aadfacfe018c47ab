import dataclasses
import json
import pathlib
import sys
import textwrap

from absl.testing import absltest, parameterized

from experiments.program import startup
from experiments.speed import child_processes, measure
from experiments.speed.setting import Setting
from tests.programs import start

TINY = ("--num_pairs=2", "--batch_size=2", "--width=8", "--num_layers=1", "--repeats=1")

# What the runner needs of PyTorch, transformers and the official code, without their work.
FAKES = {
    "torch": """
        import contextlib, types
        __version__ = "fake"
        class Tensor:
            def to(self, device): return self
            def clone(self): return self
            def __setitem__(self, where, value): pass
            def backward(self): pass
        def set_num_threads(n): pass
        def manual_seed(n): pass
        def randint(low, high, shape): return Tensor()
        no_grad = contextlib.nullcontext
        optimizer = types.SimpleNamespace(step=lambda: None, zero_grad=lambda: None)
        optim = types.SimpleNamespace(AdamW=lambda params, lr: optimizer)
        nn = types.SimpleNamespace(
            utils=types.SimpleNamespace(clip_grad_norm_=lambda params, norm: None)
        )
    """,
    "transformers": """
        __version__ = "fake"
        LlamaConfig = dict
    """,
    "grad_memgpt": """
        import time, torch
        GradMemGPTConfig = dict
        class GradMemGPT:
            def __init__(self, config):
                assert config["use_write_head"] and config["attn_implementation"] == "eager"
                self.seconds = 0.01 * config["K"] * (2 if config["grad_mode"] == "second" else 1)
            def to(self, device): return self
            def eval(self): return self
            def parameters(self): return []
            def __call__(self, inputs, labels=None):
                time.sleep(self.seconds)
                return {"loss": torch.Tensor()}
    """,
}


class BenchmarkTest(parameterized.TestCase):
    @parameterized.parameters("step", "inference")
    def test_cpu_devices_share_a_batch(self, kind):
        tiny = Setting(
            context_tokens=6, batch_size=16, micro_batches=2, width=8, num_layers=1, repeats=1
        )
        one, eight = (
            measure.MEASURES[kind](dataclasses.replace(tiny, cpu_devices=n)) for n in (1, 8)
        )
        self.assertAlmostEqual(one.get("loss", 0), eight.get("loss", 0), delta=1e-3)
        self.assertEqual(one["gflop"], eight["gflop"])

    def test_beside_a_reference(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        for name, text in FAKES.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text))
        out = folder / "new" / "out.json"
        done = start(
            *("benchmark", *TINY, "--write_steps=3", "--what=step,inference"),
            *(f"--reference={folder}", f"--out={out}", "--threads=1"),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("against the official code", done.stdout)
        report = json.loads(out.read_text())
        self.assertEqual(report["threads"], 1)
        self.assertGreater(report["matmul"]["gflop_per_second"], 0)
        step, inference = report["rows"]
        self.assertEqual((step["what"], inference["what"]), ("step", "inference"))
        for row in report["rows"]:
            self.assertEqual(row["write_steps"], 3)
            self.assertEqual(row["setting"]["context_tokens"], 15)
            for name in ("seconds", "compile_seconds", "temporary_mib", "gflop"):
                self.assertGreater(row["ours"][name], 0)
        self.assertGreater(step["reference"]["seconds"], 0.06)
        self.assertLess(
            inference["reference"]["seconds"], inference["reference"]["second_order_seconds"]
        )

    def test_compiles_only(self):
        done = start("benchmark", *TINY, "--write_steps=0", "--repeats=0")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("| step | 0 |  |", done.stdout)

    def test_all_failed(self):
        done = start("benchmark", *TINY, f"--vocab_size={10**15}", "--repeats=0")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stdout, r"\| step \| 2 \| [^|]+ \|")

    def test_rounds_become_one(self):
        rounds = [{"seconds": s, "peak_mib": p} for s, p in ((3, 10), (1, 30), (2, 20))]
        self.assertEqual(child_processes.summarise(rounds), {"seconds": 2, "peak_mib": 30})
        failed = {"error": "no memory"}
        self.assertEqual(child_processes.summarise([*rounds, failed]), failed)

    @parameterized.parameters(
        ("--reference=/nowhere", "has no grad_memgpt.py"),
        ("--what=speed", "choose one of"),
        ("--write_steps=two", "must be whole numbers"),
        ("--micro_batches=7", "must be a multiple of micro_batches"),
        ("--num_heads=3", "is not a multiple of num_heads"),
    )
    def test_refuses(self, flag, message):
        done = start("benchmark", *TINY, flag)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(message, done.stderr)
        self.assertNotIn("step, K", done.stdout)

    def test_refuses_a_python_without_torch(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        (folder / "grad_memgpt.py").touch()
        (folder / "torch.py").write_text("raise ImportError('none here', name='torch')")
        done = start("benchmark", *TINY, f"--reference={folder}")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("cannot import torch: install torch and transformers", done.stderr)


class ChildrenTest(parameterized.TestCase):
    @parameterized.parameters(
        ("raise ValueError('too long')", "ValueError: too long"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("print('no numbers')", "printed no JSON"),
        ("pass", "printed no JSON"),
    )
    def test_says_what_went_wrong(self, program, message):
        self.assertIn(message, child_processes.run_json([sys.executable, "-c", program])["error"])

    def test_takes_the_last_line(self):
        program = "print('by the way'); print('{\"seconds\": 2}')"
        self.assertEqual(child_processes.run_json([sys.executable, "-c", program]), {"seconds": 2})


class SettingTest(absltest.TestCase):
    def test_batch_is_what_a_step_takes(self):
        setting = Setting(context_tokens=6, query_tokens=5, batch_size=3, queries_per_context=2)
        batch = setting.batch()
        shapes = {name: x.shape for name, x in batch.items()}
        self.assertEqual(shapes["context_ids"], (3, 6))
        self.assertEqual(shapes["query_ids"], shapes["labels"])
        self.assertEqual(shapes["labels"], (3, 2, 5))
        self.assertTrue((batch["labels"][..., 0] < 0).all())
        self.assertTrue((batch["labels"][..., 1:] == batch["query_ids"][..., 1:]).all())

    def test_long_contexts_have_positions(self):
        self.assertGreater(Setting(context_tokens=5000).lm_config().max_positions, 5000)

    def test_integers(self):
        self.assertEqual(startup.integers("k", ["2", " 1", "2"]), [1, 2])
        with self.assertRaisesRegex(ValueError, "--k=1,x must be whole numbers"):
            startup.integers("k", ["1", "x"])


if __name__ == "__main__":
    absltest.main()
