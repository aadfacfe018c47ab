"""Reconstruction of a text step by step, beside the WRITE of the library."""

import json
import pathlib
import tempfile

import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized

from experiments.answers.open_model import open_model
from experiments.answers.write_traces import make_optimizer, trace_writes
from tests.experiments.write_ask_test import words
from tests.programs import start


class ReconstructTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        words(cls.folder / "words")

    def test_rows_are_those_of_a_write(self):
        options = {"num_memory_tokens": 2, "write_optimizer": "sgd", "write_learning_rate": 3.0}
        opened = open_model(str(self.folder / "words"), options)
        ids = np.asarray([opened.tokenizer.encode("the cat sat on a mat")], np.int32)
        optimizers = {"sgd": optax.sgd(3.0), "none": optax.sgd(0.0)}
        curves = dict(trace_writes(opened, ids, optimizers, num_steps=5, every=2))
        self.assertEqual([row["step"] for row in curves["sgd"]], [0, 2, 4, 5])
        _, info = jax.jit(opened.model.write_memory, static_argnames="num_steps")(
            opened.params, ids, num_steps=5
        )
        found = [row["write_loss"] for row in curves["sgd"][:3]]
        np.testing.assert_allclose(found, info.losses[[0, 2, 4], 0], rtol=1e-4)
        self.assertLen({row["write_loss"] for row in curves["none"]}, 1)
        self.assertLess(found[2], found[0])

    @parameterized.parameters("sgd", "adam:", "lion:1", "sgd:-1", "adam:1:2")
    def test_wrong_optimizer(self, text):
        with self.assertRaisesRegex(ValueError, "must look like 'sgd:1'"):
            make_optimizer(text, np.ones((2, 2)))

    def test_program(self):
        text, out, figure = (self.folder / name for name in ("a.txt", "a.json", "a.png"))
        text.write_text("the cat saw dogs run home")
        arguments = (f"--context={text}", f"--out={out}", f"--figure={figure}")
        steps = ("--num_write_steps=2", "--every=1", "--optimizers=sgd:1,adam:0.3")
        model = f"--model={self.folder / 'words'}"
        done = start("reconstruct", model, *arguments, *steps, devices=1)
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(out.read_text())
        self.assertEqual(result["tokens"], 6)
        self.assertEqual(list(result["curves"]), ["sgd:1", "adam:0.3"])
        self.assertIn("accuracy", result["curves"]["sgd:1"][-1])
        self.assertGreater(figure.stat().st_size, 1000)

    def test_refusals(self):
        (self.folder / "run" / "checkpoints").mkdir(parents=True)
        (self.folder / "two.jsonl").write_text('{"context": "a cat"}\n' * 2)
        (self.folder / "one.txt").write_text("a cat")
        for model, context, message in (
            ("words", "two.jsonl", "two.jsonl holds 2 contexts; name a file of one text"),
            ("run", "one.txt", "run is a run; name the files of a pretrained"),
        ):
            names = (f"--model={self.folder / model}", f"--context={self.folder / context}")
            done = start("reconstruct", *names, f"--out={self.folder / 'no.json'}")
            self.assertRegex(done.stderr, f"^error: .*{message}")


if __name__ == "__main__":
    absltest.main()
