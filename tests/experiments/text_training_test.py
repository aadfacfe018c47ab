"""The training program on texts: bAbI from scratch, and on a pretrained language model."""

import json
import pathlib
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import chex
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import train
from experiments.answers.answering import answer
from experiments.answers.open_model import open_model
from experiments.configs import babi_small, text_paper
from experiments.run import initial_state, workdir
from experiments.run.build import build
from experiments.run.compiled_steps import CompiledSteps
from experiments.run.devices import find_devices
from experiments.run.stage import RunningStage
from gradmem_jax import save_pretrained
from gradmem_jax.data import text_task
from gradmem_jax.data.babi.task import BabiConfig
from gradmem_jax.lm.pretrained.load import Pretrained
from gradmem_jax.storage import checkpoint
from tests.small import small_model, small_params

SMALL = {"lm.width": 8, "lm.num_layers": 1, "lm.num_heads": 2}
PLACES = ("attic", "bridge", "cellar", "dock", "estate", "forest", "garden", "hotel")


def stories(count):
    """Stories of which every third one is longer, so that there are several buckets."""
    lines = []
    for i in range(count):
        facts = [f"Ann went to the {PLACES[(i + j) % 8]}." for j in range(1 + 3 * (i % 3 == 0))]
        lines += [f"{n} {fact}" for n, fact in enumerate(facts, 1)]
        answer = PLACES[(i + len(facts) - 1) % 8]
        lines.append(f"{len(facts) + 1} Where is Ann {i}?\t{answer}\t{len(facts)}")
    return "\n".join(lines) + "\n"


class TextTrainingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        files = {"train": stories(60), "test": stories(9)}
        (self.folder / "en-10k").mkdir()
        for part, text in files.items():
            (self.folder / f"en-10k/qa1_x_{part}.txt").write_text(text)

    def tiny(self, config, **changes):
        small = {
            "data.data_dir": str(self.folder),
            "batch_size": 8,
            "num_steps": 4,
            "log_every": 2,
            "evaluate_every": 2,
            "num_eval_samples": 9,
            "final_num_write_steps": (0, 1),
            "optimizer.warmup_steps": 1,
        }
        config.update_from_flattened_dict(small | changes)
        return config

    def test_start_from_a_run_with_other_words(self):
        small = SMALL | {"num_steps": 2}
        first = self.tiny(babi_small.get_config("qa1_gradmem_k2"), **small)
        train.train(first, self.folder / "run")
        other = self.folder / "other"
        (other / "en-10k").mkdir(parents=True)
        for path in self.folder.glob("en-10k/*.txt"):
            (other / "en-10k" / path.name).write_text(path.read_text().replace("attic", "Alps"))
        started = {"init_from": str(self.folder / "run"), "data.data_dir": str(other)}
        config = self.tiny(babi_small.get_config("qa1_gradmem_k2"), **small | started)
        with self.assertLogs("experiments", "INFO") as logs:
            state = initial_state.start_state(build(config))
        self.assertRegex("\n".join(logs.output), "other ids of tokens; new are 1: Alps")
        before = open_model(str(self.folder / "run"), {"checkpoint_name": "best"})
        now = build(config).target.task.tokenizer
        words = ("Ann", "bridge", ".", "?")
        self.assertNotEqual(*(int(t.encode("Ann")[0]) for t in (before.tokenizer, now)))
        for word in words:
            old, new = int(before.tokenizer.encode(word)[0]), int(now.encode(word)[0])
            np.testing.assert_array_equal(
                state.params["lm"]["embedding"][new], before.params["lm"]["embedding"][old]
            )
            np.testing.assert_array_equal(
                state.params["write_head"][:, new], before.params["write_head"][:, old]
            )

    @parameterized.parameters(("attic", "Alps"), (" dock", " dock and quay"))
    def test_a_run_does_not_go_on_with_other_words(self, word, other):
        config = self.tiny(babi_small.get_config("qa1_gradmem_k2"), **SMALL)
        run, plan = self.folder / "run", build(config)
        (run / "checkpoints" / "2").mkdir(parents=True)
        for _ in range(2):
            workdir.check_workdir(run, plan)
            workdir.save_tokenizer(run, plan.target.task)
        for path in self.folder.glob("en-10k/*.txt"):
            path.write_text(path.read_text().replace(word, other))
        for cached in (text_task._records, text_task._word_tokenizer):
            cached.cache_clear()
        with self.assertRaisesRegex(ValueError, "texts with other words; 2 differ, such as '"):
            workdir.check_workdir(run, build(config))

    def test_from_scratch(self):
        config = self.tiny(babi_small.get_config("qa1_gradmem_k2"), **SMALL)
        with self.assertLogs("experiments", "INFO") as logs:
            summary = train.train(config, self.folder / "run")
        text = "\n".join(logs.output)
        self.assertIn("training on QA1, K = ", text)
        self.assertRegex(text, r"contexts of 8, queries of 8 tokens; compiled")
        self.assertIn("generated answers: text exact match", text)
        written = json.loads((self.folder / "run" / "metrics.json").read_text())
        self.assertEqual(written["task"], "babi")
        self.assertBetween(summary["text_f1"], summary["text_exact_match"], 1)
        # An answer is one word here and ends with the end token: both ways of counting agree.
        self.assertLessEqual(summary["exact_match"], summary["text_exact_match"])
        self.assertIn("Where is Ann", (self.folder / "run" / "answers.txt").read_text())

        shutil.rmtree(self.folder / "en-10k")  # the run can be asked without its data
        opened = open_model(str(self.folder / "run"), {})
        task = BabiConfig(tokenizer_path=str(self.folder / "run" / "tokenizer.json"))
        ids = opened.tokenizer.encode("Ann went to the attic.")
        np.testing.assert_array_equal(ids, task.tokenizer.encode("Ann went to the attic."))
        memory, _ = opened.model.write_memory(opened.params, ids[None])
        answers = answer(opened, memory, ["Where is Ann 1?"], 2)
        self.assertLen(answers, 1)

    def test_steps_of_all_lengths_are_compiled_ahead(self):
        config = self.tiny(babi_small.get_config("qa1_full_context"), **SMALL)
        config.curriculum.max_context_tokens = ()
        plan = build(config)
        devices = find_devices(plan)
        self.assertEqual(plan.target.task.context_buckets, (8, 24))
        with self.assertLogs("experiments", "INFO") as logs:
            with CompiledSteps(plan, devices, initial_state.start_state(plan)) as steps:
                stage = RunningStage(plan, 0, devices, steps)
            self.assertLen(re.findall(r"contexts of (?:8|24)", "\n".join(logs.output)), 2)
            waited = steps.seconds
            for _ in range(4):
                stage.step(initial_state.start_state(plan), stage.next_batch())
        self.assertLen(logs.output, 2)
        self.assertEqual(steps.seconds, waited)

    def test_a_new_stage_compiles_first(self):
        config = self.tiny(babi_small.get_config("qa1_full_context"), **SMALL)
        plan = build(config)
        steps = CompiledSteps(plan, find_devices(plan), {})
        go_on, compiled = threading.Event(), []

        def compile_step(model, batch, name):
            go_on.wait()
            compiled.append((model, batch["context_ids"].shape[1]))

        batch = lambda length: {
            name: jax.ShapeDtypeStruct((8, length), int) for name in ("context_ids", "query_ids")
        }
        one_at_a_time = mock.patch.object(steps, "_pool", ThreadPoolExecutor(1))
        with mock.patch.object(steps, "_compile", compile_step), one_at_a_time, steps:
            steps.start("old", [batch(8), batch(16), batch(24)], "old")
            steps.start("new", [batch(24), batch(8)], "new")
            go_on.set()
            steps.find("new", batch(8), "new")
            self.assertEqual(compiled, [("old", 8), ("new", 24), ("new", 8)])
            steps.find("old", batch(16), "old")
            self.assertEqual(compiled[3:], [("old", 16)])

    def test_shuffled_buckets_resume_with_identical_numbers(self):
        config = self.tiny(babi_small.get_config("qa1_full_context"), **SMALL)
        config.optimizer.schedule = "constant"  # whatever the number of steps
        for steps in (2, 4):
            config.num_steps = steps
            train.train(config, self.folder / "twice")
        config.num_steps = 4
        train.train(config, self.folder / "once")
        once, twice = (
            checkpoint.restore_params(self.folder / name / "checkpoints", "latest")
            for name in ("once", "twice")
        )
        chex.assert_trees_all_equal(once, twice)

    def test_pretrained_and_frozen(self):
        self.train_pretrained_and_frozen("gradmem_k1")

    @parameterized.parameters("armt", "full_context")
    @pytest.mark.slow
    def test_other_methods_pretrained_and_frozen(self, method):
        self.train_pretrained_and_frozen(method)

    def train_pretrained_and_frozen(self, method):
        tokenizer = BabiConfig(data_dir=str(self.folder)).tokenizer
        lm = small_model(lm={"vocab_size": tokenizer.vocab_size + 1, "num_kv_heads": 2})
        params = small_params(lm)["lm"]
        save_pretrained(self.folder / "lm", Pretrained(lm.config.lm, params, tokenizer))
        config = text_paper.get_config(f"qa1_{method}")
        changes = {"pretrained": str(self.folder / "lm"), "lm.dtype": "float32"}
        if method != "full_context":
            changes["frozen"] = (r"^lm/(layers_\d+/(block/)?(attention|gate|up|down)|emb|head)",)
        config = self.tiny(config, **changes)
        train.train(config, self.folder / "run")
        _, trained = checkpoint.restore_params(self.folder / "run" / "checkpoints")
        same = np.array_equal(trained["lm"]["embedding"], params["embedding"])
        self.assertEqual(same, method != "full_context")

    def test_pretrained_models_that_do_not_fit(self):
        tokenizer = BabiConfig(data_dir=str(self.folder)).tokenizer
        lm = small_model(lm={"vocab_size": tokenizer.vocab_size - 1, "num_kv_heads": 2})
        save_pretrained(
            self.folder / "lm", Pretrained(lm.config.lm, small_params(lm)["lm"], tokenizer)
        )
        path = {"pretrained": str(self.folder / "lm")}
        with self.assertRaisesRegex(ValueError, "the tokenizer has .* ids, pretrained="):
            build(self.tiny(text_paper.get_config("qa1_rmt"), **path))
        with self.assertRaisesRegex(ValueError, "method='mamba' needs a MambaConfig"):
            build(self.tiny(text_paper.get_config("qa1_mamba"), **path))
        with self.assertRaisesRegex(ValueError, "there is no tokenizer /nowhere"):
            build(self.tiny(text_paper.get_config("qa1_rmt"), pretrained="/nowhere"))

    def test_curriculum_needs_pairs(self):
        config = self.tiny(
            babi_small.get_config("qa1_gradmem_k1"), **{"curriculum.num_pairs": (1,)}
        )
        with self.assertRaisesRegex(ValueError, "task 'babi' has no num_pairs"):
            build(config)

    def test_curriculum_over_context_lengths(self):
        lengths = {"curriculum.max_context_tokens": (8, 0), "curriculum.exact_match": 0.0}
        config = self.tiny(babi_small.get_config("qa1_full_context"), **SMALL, **lengths)
        short, whole = (stage.task.source("train") for stage in build(config).stages)
        self.assertLess(len(short), len(whole))
        self.assertLessEqual(max(short.context_lengths), 8)
        with self.assertLogs("experiments", "INFO") as logs:
            train.train(config, self.folder / "run")
        steps = re.findall(r"step (\d)/4 QA1(, contexts to 8 tokens)?, K", "\n".join(logs.output))
        self.assertEqual(steps, [("2", ", contexts to 8 tokens"), ("4", "")])

    @parameterized.parameters(
        ({"curriculum.max_context_tokens": (8, 16)}, "ends at max_context_tokens=16, .* itself, 0"),
        (
            {"curriculum.max_context_tokens": (8, 0), "curriculum.num_pairs": (1,)},
            "curriculum.num_pairs and curriculum.max_context_tokens exclude each other",
        ),
        (
            {"curriculum.max_context_tokens": (8, 0), "curriculum.num_write_steps": (1,)},
            "must have equal length",
        ),
        ({"curriculum.num_write_steps": (1,)}, "needs one of"),
    )
    def test_curricula_that_are_none(self, changes, message):
        config = self.tiny(babi_small.get_config("qa1_gradmem_k1"), **changes)
        with self.assertRaisesRegex(ValueError, message):
            build(config)


if __name__ == "__main__":
    absltest.main()
