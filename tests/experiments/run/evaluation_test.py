"""Evaluation over batches against evaluation at once, and confidence intervals."""

import json
import pathlib
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments.run import evaluation
from experiments.run.evaluation import (
    answer_metrics,
    confidence_interval,
    evaluate_params,
    sample_answers,
)
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
from gradmem_jax.data.squad import SquadConfig
from gradmem_jax.losses import IGNORE
from tests.small import random_ids, small_model, small_params

DATA = KVRetrievalConfig(num_pairs=2, key_length=1, value_length=1, alphabet_size=3)
MODEL = small_model()
PARAMS = small_params(MODEL)


class Unequal:
    """Samples that differ in the lengths of contexts and targets and in the number of queries."""

    kinds, pad_id, context_buckets, query_buckets = (), 0, (9,), (5,)

    def source(self, split, num_samples):
        query_ids = random_ids(0, 5, 2, 5)
        memory = np.tile(PARAMS["initial_memory"], (5, 1, 1))
        answered = jax.jit(MODEL.read_memory)(PARAMS, memory, query_ids)[..., :-1, :].argmax(-1)
        samples = []
        for i, ids in enumerate(query_ids):
            targets = answered[i] if i in (0, 3) else ids
            labels = np.where(np.arange(5) < 4 - i % 3, IGNORE, targets)
            if i % 2:
                labels[1] = IGNORE
            sample = {"context_ids": random_ids(i, 9 - i), "query_ids": ids, "labels": labels}
            samples.append(sample | {"value_mask": labels != IGNORE})
        return samples[:num_samples]


class EvaluationTest(parameterized.TestCase):
    def test_batch_size_does_not_matter(self):
        run = lambda size: evaluate_params(
            MODEL, PARAMS, DATA, [0, 2], num_samples=10, batch_size=size
        )
        whole, parts = run(10), run(4)
        self.assertEqual(set(whole), {0, 2})
        for k in whole:
            flat = lambda tree: np.array(jax.tree.leaves(tree))
            np.testing.assert_allclose(flat(whole[k]), flat(parts[k]), rtol=1e-4)
        self.assertNotEqual(whole[0]["write_loss"], whole[2]["write_loss"])

    def test_means_are_over_what_they_count(self):
        run = lambda size: evaluate_params(
            MODEL, PARAMS, Unequal(), [0], num_samples=100, batch_size=size
        )[0]
        whole, parts = run(5), run(2)
        self.assertEqual(whole["num_samples"], 5)
        self.assertEqual(whole["confidence_interval"], confidence_interval(3 / 8, 5))
        self.assertEqual(whole.keys(), parts.keys())
        for name, value in whole.items():
            np.testing.assert_allclose(parts[name], value, rtol=1e-4, err_msg=name)

    def test_generated_answers_by_hand(self):
        answers = {"A": "red house", "B": "blue car", "C": "cat"}
        given = {"A": "red house", "B": "blue cat", "C": "house"}
        text = "The red house, blue car and cat."
        qas = [
            {
                "id": name,
                "question": f"Which {name}?",
                "answers": [{"text": answer, "answer_start": text.index(answer)}],
            }
            for name, answer in answers.items()
        ]
        folder = pathlib.Path(self.create_tempdir().full_path)
        for name, titles in (("train", "de"), ("dev", "f")):
            paragraphs = [{"context": text, "qas": qas}]
            articles = [{"title": title, "paragraphs": paragraphs} for title in titles]
            (folder / f"{name}-v1.1.json").write_text(json.dumps({"data": articles}))
        task = SquadConfig(data_dir=str(folder))
        tokenizer, asked = task.tokenizer, []

        def generate(model, params, memory, query_ids, max_new_tokens, stop_id, never):
            texts = [tokenizer.decode(ids) for ids in query_ids[:, 0]]
            asked.extend(texts)
            new = np.zeros((len(texts), 1, max_new_tokens), int)
            for row, text in zip(new[:, 0], texts, strict=True):
                ids = tokenizer.encode(given[text.split()[3]])
                row[: len(ids)] = ids
            return new

        model = small_model(num_write_steps=0, lm={"vocab_size": task.vocab_size})
        with mock.patch.object(evaluation, "generate", generate):
            got = answer_metrics(model, small_params(model), task, num_samples=9, batch_size=2)
        self.assertEqual(got, {"text_exact_match": 1 / 3, "text_f1": 0.5})
        self.assertEqual(asked, [f"question : Which {name} ? answer :" for name in "ABCC"])

    def test_answers_are_readable(self):
        lines = sample_answers(MODEL, PARAMS, DATA, count=2).splitlines()
        self.assertLen(lines, 4)
        self.assertRegex(lines[0], r"^context  !.:.!!.:.!\|$")
        self.assertRegex(lines[1], r"^  \?!.: -> .* \((right|wrong, it is .!\|)\)$")

    @parameterized.parameters((0.0, 100), (1.0, 100), (0.3, 50))
    def test_wilson_interval_solves_its_equation(self, rate, count):
        for bound in confidence_interval(rate, count):
            if 0 < bound < 1:
                distance = abs(rate - bound)
                self.assertAlmostEqual(distance, 1.96 * np.sqrt(bound * (1 - bound) / count))
        low, high = confidence_interval(rate, count)
        self.assertTrue(0 <= low <= rate <= high + 1e-12 <= 1 + 1e-12)
        self.assertGreater(high - low, 0.01)


if __name__ == "__main__":
    absltest.main()
