"""Lost pairs: counts against those made by hand from the text, the program, its refusals."""

import collections
import json
import pathlib
import re
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from experiments.results import lost_pairs
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
from tests.experiments.tiny_run import random_run, tiny_config
from tests.programs import start

MODEL = None  # where answers are made by hand


def count(task, answers_of, steps=(2,), num_samples=40):
    """What `count_lost_pairs` finds where a sample's answers, by text, are `answers_of`."""
    tokenizer = task.tokenizer

    def likeliest(model, params, context_ids, query_ids, num_steps, *, max_steps):
        tokens = np.array(query_ids)
        for row, context in zip(tokens, context_ids, strict=True):
            pairs = re.findall(r"!(\w+):(\w+)!", tokenizer.decode(np.asarray(context)))
            for query in row:
                key = re.match(r"\?!(\w+):", tokenizer.decode(query))[1]
                start = 3 + len(key)
                answer = tokenizer.encode(answers_of(dict(pairs), key, int(num_steps)))
                query[start : start + len(answer)] = answer
        return jnp.asarray(tokens)

    with mock.patch.object(lost_pairs, "_likeliest_tokens", likeliest):
        return lost_pairs.count_lost_pairs(MODEL, {}, task.source("test", num_samples), steps)


def alike(key, other):
    return key != other and any(a == b for a, b in zip(key, other, strict=True))


class LostPairsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.task = KVRetrievalConfig(num_pairs=8, alphabet_size=8, queries_per_context=8)

    def test_all_right(self):
        row = count(self.task, lambda pairs, key, _: pairs[key])[2]
        self.assertEqual((row["exact_match"], row["num_lost"], row["mixed_up"]), (1, 0, 0))
        self.assertEqual([part["num_pairs"] for part in row["by_place"].values()], [40] * 8)
        self.assertEqual(sum(part["num_pairs"] for part in row["by_keys_alike"].values()), 320)

    @parameterized.parameters(3, 8, 12)
    def test_by_place(self, num_pairs):
        def forget_the_first(pairs, key, _):
            return "zz" if key == next(iter(pairs)) else pairs[key]

        task = KVRetrievalConfig(num_pairs=num_pairs, queries_per_context=num_pairs)
        row = count(task, forget_the_first)[2]
        num_parts = min(num_pairs, 8)
        self.assertEqual(list(row["by_place"]), list(range(1, num_parts + 1)))
        rates = [part["exact_match"] for part in row["by_place"].values()]
        self.assertAlmostEqual(rates[0], 0.5 if num_pairs == 12 else 0)
        self.assertEqual(rates[1:], [1] * (num_parts - 1))
        self.assertEqual(row["num_lost"], 40)

    def test_by_keys_alike(self):
        seen = collections.Counter()

        def forget_keys_alike(pairs, key, _):
            others = sum(alike(key, other) for other in pairs)
            seen[min(others, 3)] += 1
            return pairs[key] if others < 2 else "zz"

        row = count(self.task, forget_keys_alike, num_samples=64)[2]  # whole batches
        found = {n: part["num_pairs"] for n, part in row["by_keys_alike"].items()}
        self.assertEqual(found, dict(sorted(seen.items())))
        rates = [part["exact_match"] for part in row["by_keys_alike"].values()]
        self.assertEqual(rates, [1, 1, 0, 0])

    def test_mixed_up(self):
        def take_that_of_another(pairs, key, num_steps):
            others = [pairs[other] for other in pairs if alike(key, other)] or ["zz"]
            return others[0] if num_steps == 2 else pairs[key][0] + others[0][1]

        rows = count(self.task, take_that_of_another, (1, 2))
        lost, mixed_up = 0, 0
        for sample in self.task.source("test", 40):
            text = self.task.tokenizer.decode(sample["context_ids"])
            pairs = dict(re.findall(r"!(\w+):(\w+)!", text))
            for key, value in pairs.items():
                others = [pairs[other] for other in pairs if alike(key, other)]
                said = take_that_of_another(pairs, key, 2)
                lost += said != value
                mixed_up += said != value and bool(others)
        self.assertEqual(rows[2]["num_lost"], lost)
        self.assertAlmostEqual(rows[2]["mixed_up"], mixed_up / lost)
        self.assertGreater(rows[1]["mixed_up"], 0.5)
        self.assertIn("mixed up", lost_pairs.table(rows))

    def test_program(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        random_run(folder / "run", tiny_config())
        words = (f"--workdir={folder / 'run'}", f"--out={folder / 'lost'}")
        done = start("lost_pairs", *words, "--num_pairs=4", "--num_samples=8", devices=1)
        self.assertEqual(done.returncode, 0, done.stderr)
        results = json.loads((folder / "lost.json").read_text())
        measured = [results[name] for name in ("split", "num_pairs", "num_samples")]
        self.assertEqual(measured, ["test", 4, 8])
        (row,) = results["by_num_write_steps"].values()
        self.assertEqual([part["num_pairs"] for part in row["by_place"].values()], [8] * 4)
        self.assertEqual(row["num_lost"], round(32 * (1 - row["exact_match"])))
        self.assertEqual((folder / "lost.png").read_bytes()[:4], b"\x89PNG")
        config = tiny_config(**{"data.num_segments": 2})
        random_run(folder / "parts", config)
        refused = start("lost_pairs", f"--workdir={folder / 'parts'}", devices=1)
        self.assertEqual(refused.returncode, 1)
        self.assertRegex(refused.stderr, "in one piece")


if __name__ == "__main__":
    absltest.main()
