"""Files that version 0.1 wrote open with today's code and give the same answers.

`files_of_0_1/` holds a run of 4 training steps, its export, and a memory file with the answers of
`experiments.ask --json` for that run (`pairs`) and for the model of the repository (`story`).
"""

import json
import pathlib
import shutil

import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file

from tests.programs import ROOT, start

FILES = pathlib.Path(__file__).parent / "files_of_0_1"
SHIPPED = ROOT / "experiments/models/babi_qa2"
RUN = {  # the arguments of files_of_0_1/run beside num_steps=4
    "optimizer.warmup_steps": 2,
    "optimizer.schedule": "constant",
    "log_every": 2,
    "evaluate_every": 4,
    "batch_size": 4,
    "num_eval_samples": 8,
    "lm.width": 8,
    "lm.num_layers": 1,
    "lm.num_heads": 2,
    "lm.mlp_width": 8,
    "data.num_pairs": 4,
    "data.queries_per_context": 2,
    "model.num_memory_tokens": 2,
    "model.num_write_steps": 1,
}


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


class EarlierFilesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def start(self, program, *arguments):
        done = start(program, *arguments, devices=1)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def copy_of_run(self):
        return pathlib.Path(shutil.copytree(FILES / "run", self.folder / "run"))

    @parameterized.parameters(
        ("pairs", "answers", FILES / "run"),
        ("pairs", "answers", FILES / "exported"),
        ("story", "story_answers", SHIPPED),
    )
    def test_memory_file_is_asked(self, name, answers, model):
        want = json_lines((FILES / f"{answers}.jsonl").read_text())
        memory = FILES / f"{name}.safetensors"
        questions = [row["question"] for row in want]
        done = self.start("ask", f"--memory={memory}", f"--model={model}", "--json", *questions)
        self.assertEqual(json_lines(done.stdout), want)

    @parameterized.parameters(
        ("pairs", FILES / "run"), ("pairs", FILES / "exported"), ("story", SHIPPED)
    )
    def test_model_writes_the_same_memory(self, name, model):
        out = self.folder / "memory.safetensors"
        context = FILES / f"{name}.txt"
        self.start("write", f"--model={model}", f"--context={context}", f"--out={out}")
        got, want = load_file(out), load_file(FILES / f"{name}.safetensors")
        self.assertEqual(got.keys(), want.keys())
        for key, x in want.items():
            np.testing.assert_allclose(got[key], x, rtol=1e-4, atol=1e-4 * np.abs(x).max())

    def test_run_is_evaluated(self):
        run, out = self.copy_of_run(), self.folder / "evaluation"
        steps = ("0", "1")
        arguments = (f"--workdir={run}", f"--num_write_steps={','.join(steps)}", f"--out={out}")
        self.start("evaluate", *arguments, "--num_samples=8")
        (got,) = json.loads(out.with_suffix(".json").read_text())["by_task"].values()
        want = json.loads((run / "metrics.json").read_text())["by_num_write_steps"]
        for k in steps:
            for name in ("read_loss", "write_loss", "token_accuracy"):
                np.testing.assert_allclose(got[k][name], want[k][name], rtol=1e-5, err_msg=name)

    def test_run_goes_on(self):
        run = self.copy_of_run()
        fields = (RUN | {"num_steps": 6, "final_num_write_steps": "(1,)"}).items()
        arguments = (f"--config.{name}={value}" for name, value in fields)
        done = self.start("train", f"--workdir={run}", *arguments)
        self.assertIn("going on from step 4", done.stdout)
        self.assertEqual(json.loads((run / "metrics.json").read_text())["steps"], 6)


if __name__ == "__main__":
    absltest.main()
