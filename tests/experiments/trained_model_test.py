"""The trained models that are part of the repository: they open, and answer from memory alone."""

import dataclasses
import pathlib
import re

import jax
import numpy as np
from absl.testing import absltest

from experiments.answers.answering import answer
from experiments.answers.open_model import open_model
from experiments.run.evaluation import evaluate_params, one_query
from experiments.run.saved_run import SavedRun
from tests.shared_data import data_dir

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments/models/babi_qa2"
PAIRS = ROOT / "experiments/models/kv_n64"
STORY = (
    "Mary went to the kitchen. Mary got the milk there. John moved to the office. "
    "Mary travelled to the garden. John picked up the football there. Mary dropped the milk. "
    "John went to the hallway. Mary moved to the bedroom."
)
ANSWERS = {
    "Where is the milk?": "garden",
    "Where is the football?": "hallway",
    "Where is Mary?": "bedroom",
    "Where is John?": "hallway",
    "Who has the football?": "John",
    "Who has the milk?": "nobody",
}


def answers(story, questions, folder=FOLDER):
    opened = open_model(str(folder), {})
    ids = np.array([opened.tokenizer.encode(story)])
    memory, _ = jax.jit(opened.model.write_memory)(opened.params, ids)
    return answer(opened, memory, questions, 2)[0]


class TrainedModelTest(absltest.TestCase):
    def test_answers_from_memory_alone(self):
        got = answers(STORY, list(ANSWERS))
        self.assertEqual(dict(zip(ANSWERS, got, strict=True)), ANSWERS)

    def test_the_story_of_the_readme(self):
        text = (ROOT / "README.md").read_text()
        (story,) = re.findall(r"echo '(.*)' > story.txt", text)
        (questions,) = re.findall(r"--memory=story.safetensors '(.*)'\n", text)
        self.assertEqual(answers(story, questions.split("' '")), ["garden", "office", "Mary"])

    def test_the_pairs_of_the_readme(self):
        text = (ROOT / "README.md").read_text()
        (pairs,) = re.findall(r"echo '(.*)' > pairs.txt", text)
        (questions,) = re.findall(r"--memory=pairs.safetensors --max_new_tokens=2 '(.*)'\n", text)
        got = answers(pairs, questions.split("' '"), PAIRS)
        self.assertEqual(got, ["42", "08"])

    def test_fresh_pairs(self):
        opened = open_model(str(PAIRS), {})
        whole = SavedRun(PAIRS).plan.target.task  # 64 pairs
        task = dataclasses.replace(whole, num_pairs=32, queries_per_context=8)
        (row,) = evaluate_params(
            opened.model, opened.params, task, [5], num_samples=4, split="test"
        ).values()
        self.assertGreater(row["exact_match"], 0.95)

    def test_published_questions(self):
        short = {"varied_copies": 0, "max_context_tokens": 64, "data_dir": str(data_dir() / "babi")}
        opened = open_model(str(FOLDER), {})
        whole = SavedRun(FOLDER).plan.target.task
        task = one_query(dataclasses.replace(whole, **short))
        (row,) = evaluate_params(
            opened.model, opened.params, task, [2], num_samples=100, split="test"
        ).values()
        self.assertGreater(row["exact_match"], 0.95)


if __name__ == "__main__":
    absltest.main()
