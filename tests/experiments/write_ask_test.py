"""Documents written into memory by one program, asked by the other: runs and pretrained models."""

import functools
import json
import os
import pathlib
import shlex
import shutil
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

import gradmem_jax
from experiments.answers.answering import (
    answer,
    choose_contexts,
    encode_questions,
    open_memories,
)
from experiments.answers.contexts import Context, encode_context, read_contexts
from experiments.answers.open_model import WRITE_LEARNING_RATES, open_model
from experiments.answers.reopen_model import reopen_model
from experiments.answers.writing import (
    read_back,
    report,
    report_read_back,
    save_written,
    write_contexts,
)
from experiments.configs import default
from experiments.run import initial_state
from experiments.run.build import build
from experiments.run.workdir import check_workdir
from gradmem_jax.lm.pretrained.load import Pretrained, save_pretrained
from gradmem_jax.storage.memory_file import load_memory, read_header
from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer
from tests.experiments.tiny_run import random_run, tiny_config
from tests.programs import start
from tests.small import numpy_params, small_model

TEXTS = ["!a:b!!c:d!|", "!e:f!!g:h!|", "!a:g!!b:c!|"]
QUESTIONS = ["?!a:", "?!c:"]


def words(folder, more_rows=0):
    """A tiny random model of words, perhaps with rows beside them, as Hugging Face stores it."""
    tokenizer = word_tokenizer(["the cat sat on a mat and saw dogs run home"])
    model = small_model(lm={"vocab_size": tokenizer.vocab_size + more_rows, "max_positions": 64})
    lm = numpy_params(lambda: model.init(jax.random.key(0)))["lm"]
    save_pretrained(folder, Pretrained(model.config.lm, lm, tokenizer))


class WriteAskTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.run_path = str(cls.folder / "run")
        random_run(pathlib.Path(cls.run_path), tiny_config())
        cls.words_path = str(cls.folder / "words")
        words(cls.words_path)

    def setUp(self):
        super().setUp()
        self.out = self.folder / "memory.safetensors"  # beside the models
        self.here = pathlib.Path(self.create_tempdir().full_path)

    def contexts(self, texts=TEXTS):
        for i, text in enumerate(texts):
            (self.here / f"{i}.txt").write_text(text + "\n")
        return str(self.here / "*.txt")

    def write(self, model, texts=TEXTS, options=None, show=False, **how):
        """Writes texts as the program does; returns what it says."""
        opened = open_model(model, options or {})
        with (
            self.assertLogs("experiments", "INFO") as logs,
            jax.numpy_dtype_promotion("strict"),
            jax.numpy_rank_promotion("raise"),
        ):
            written = write_contexts(opened, read_contexts([self.contexts(texts)]), **how)
        save_written(self.out, opened, written)
        lines = [record.getMessage() for record in logs.records]
        shown = [report_read_back(written, read_back(opened, written, 2))] if show else []
        return "\n".join([*lines, report(opened, written), *shown])

    def ask(self, *questions, pattern="*", batch_size=16, max_new_tokens=32, model=None):
        """Asks as the program does; returns the answers of each context."""
        header = read_header(self.out)
        chosen = choose_contexts(self.out, header, pattern)
        opened = reopen_model(str(self.out), header.notes, model)
        return [
            row
            for _, memory in open_memories(self.out, opened, header, chosen, batch_size)
            for row in answer(opened, memory, questions, max_new_tokens)
        ]

    def test_a_run_end_to_end(self):
        said = self.write(self.run_path, show=True)
        self.assertRegex(said, r"3/3 contexts \| [\d.]+ contexts/s \| 0:00 left")
        line = r"0\.txt: 11 tokens \| WRITE loss [\d.]+ -> [\d.]+ \| memory 16 floats, 64 bytes"
        self.assertRegex(said, line + r" \| KV cache 176 floats, 704 bytes: 11\.0 times the memory")
        self.assertEqual(said.count("of its tokens are the likeliest"), 3)
        opened = open_model(self.run_path, {})
        ids = np.stack([opened.tokenizer.encode(text) for text in TEXTS])
        memory, info = jax.jit(opened.model.write_memory)(opened.params, ids)
        stored = load_memory(self.out, opened.model, opened.params)
        np.testing.assert_allclose(stored, memory, rtol=1e-5, atol=1e-6)
        header = read_header(self.out)
        losses = [context.write_losses[0] for context in header.contexts]
        np.testing.assert_allclose(losses, info.losses.T, rtol=1e-5)
        token_losses = jax.jit(opened.model.write_token_losses)
        final = token_losses(opened.params, stored, ids).mean(axis=1)
        np.testing.assert_allclose([c.final_loss for c in header.contexts], final, rtol=1e-5)

        answers = self.ask(*QUESTIONS)
        questions = np.stack([opened.tokenizer.encode(q) for q in QUESTIONS])
        questions = np.broadcast_to(questions, (3, *questions.shape))
        new = gradmem_jax.generate(
            opened.model, opened.params, stored, questions, 32, stop_id=opened.end_id
        )
        decode = lambda ids: opened.tokenizer.decode(ids).split("|")[0]
        self.assertEqual(answers, [[decode(ids) for ids in rows] for rows in new])
        self.assertEqual(self.ask(*QUESTIONS, pattern="*[12].txt", batch_size=1), answers[1:])
        self.assertEqual(self.ask(*QUESTIONS, pattern="*[02].txt"), answers[::2])

    def test_an_exported_run_answers_as_the_run(self):
        out = self.here / "exported"
        arguments = (f"--workdir={self.run_path}", f"--out={out}")
        done = start("export", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"step 1 of \S+: \d+ parameters, \d+ KiB in ")
        names = ["config.json", "exported.json", "params.safetensors"]
        self.assertEqual(sorted(path.name for path in out.iterdir()), names)
        self.write(self.run_path)
        answers = self.ask(*QUESTIONS)
        self.assertEqual(self.ask(*QUESTIONS, model=str(out)), answers)
        self.write(str(out))
        self.assertEqual(self.ask(*QUESTIONS, model=str(out)), answers)
        run, exported = (open_model(path, {}).params for path in (self.run_path, str(out)))
        chex.assert_trees_all_equal(run, exported)
        plan = build(tiny_config(init_from=str(out)))
        chex.assert_trees_all_equal(dict(initial_state.start_params(plan)), run)

        for_hub = ("--dtype=float16", "--hub_layout", "--license=cc-by-4.0")
        self.assertEqual(start("export", *arguments, *for_hub).returncode, 0)
        card = (out / "README.md").read_text()
        self.assertRegex(card, r"^---\nlibrary_name: gradmem_jax\nlicense: cc-by-4.0\n")
        self.assertRegex(card, r"# exported\n(.*\n)*- parameters: .*, stored as float16\n")
        half = open_model(str(out), {"checkpoint_name": "1"}).params
        chex.assert_trees_all_close(half, run, rtol=1e-3, atol=1e-6)
        with self.assertRaisesRegex(ValueError, "checkpoint='2' is not known"):
            open_model(str(out), {"checkpoint_name": "2"})
        done = start("export", arguments[0], f"--out={self.run_path}")
        self.assertRegex(done.stderr, "^error: --out=.* has files that are no export")
        missing = out.parent / "missing"
        done = start("export", f"--workdir={missing}", f"--out={missing}_export")
        self.assertRegex(done.stderr, "^error: there are no checkpoints in ")
        self.assertFalse(out.with_name("missing_export").exists())
        with self.assertRaisesRegex(
            ValueError, r"what experiments.export made .*init_from=\S+exported"
        ):
            check_workdir(out, plan)

    def test_an_exported_run_needs_no_files_of_its_language_model(self):
        folder = self.here
        words(folder / "words")
        config = default.get_config("gradmem", "squad", pretrained=True)
        config.pretrained = str(folder / "words")
        random_run(folder / "pretrained", config)
        run = open_model(str(folder / "pretrained"), {})
        out = folder / "exported"
        done = start("export", f"--workdir={folder / 'pretrained'}", f"--out={out}")
        self.assertEqual(done.returncode, 0, done.stderr)
        shutil.rmtree(folder / "words")
        out = out.rename(folder / "elsewhere")
        exported = open_model(str(out), {})
        chex.assert_trees_all_equal(exported.params, run.params)
        self.assertEqual(exported.model.config, run.model.config)
        ids = [opened.tokenizer.encode("the cat sat") for opened in (exported, run)]
        np.testing.assert_array_equal(*ids)
        self.assertEqual(exported.end_id, run.end_id)

        again = (f"--workdir={out}", f"--out={out}", "--dtype=float16", "--hub_layout")
        done = start("export", *again)
        self.assertEqual(done.returncode, 0, done.stderr)
        card = (out / "README.md").read_text()
        self.assertIn("begun from a pretrained language model whose name is not recorded", card)
        half = open_model(str(out), {})
        chex.assert_trees_all_close(half.params, run.params, rtol=1e-3, atol=1e-6)
        self.assertEqual(half.model.config, run.model.config)

    def test_the_programs(self):
        run = self.run_path
        pattern, figure = self.contexts(), self.here / "memory.png"
        done = start(
            "write",
            *(f"--model={run}", f"--context={pattern}", f"--out={self.out}"),
            *(f"--figure={figure}", "--num_write_steps=3"),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("2.txt: 11 tokens | WRITE loss", done.stdout)
        self.assertStartsWith(figure.read_bytes(), b"\x89PNG")
        self.assertLen(read_header(self.out).contexts[0].write_losses[0], 3)
        want = self.ask(*QUESTIONS)
        elsewhere = self.out.rename(self.here / self.out.name)  # not beside the model
        refused = start("ask", f"--memory={elsewhere}", *QUESTIONS)
        self.assertEqual(refused.returncode, 1)
        command = refused.stderr.partition("it names: ")[2]
        self.assertStartsWith(command, f"python -m experiments.ask --memory={elsewhere} ")
        done = start("ask", *shlex.split(command)[3:])
        self.assertEqual(done.returncode, 0, done.stderr)
        elsewhere.rename(self.out)
        names = [context.name for context in read_header(self.out).contexts]
        lines = [
            f"{name}: {question} -> {text}"
            for name, row in zip(names, want, strict=True)
            for question, text in zip(QUESTIONS, row, strict=True)
        ]
        self.assertEqual(done.stdout.splitlines(), lines)

        memory, first = f"--memory={self.out}", "--context=*0.txt"
        keyboard = "\n".join([QUESTIONS[0], "?" * 3000, QUESTIONS[1], "", "never asked"])
        done = start("ask", memory, first, "--interactive", "--json", keyboard=keyboard)
        got = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([line["answer"] for line in got], want[0])
        self.assertEqual([line["question"] for line in got], QUESTIONS)
        self.assertIn("has 3000 tokens", done.stderr)
        for arguments in ((), ("--interactive", "?!a:")):
            done = start("ask", memory, *arguments)
            self.assertIn("one of the two", done.stderr)

    def test_a_batch_changes_no_memory(self):
        opened = open_model(self.run_path, {})
        texts = [*TEXTS[:2], "!a:b!" * 5]
        contexts = [Context(str(i), text) for i, text in enumerate(texts)]
        for segment_tokens in (None, 12):
            together, one_by_one = (
                write_contexts(opened, contexts, batch_size=size, segment_tokens=segment_tokens)
                for size in (2, 1)
            )
            chex.assert_trees_all_close(together.memory, one_by_one.memory, rtol=1e-5, atol=1e-6)
            for a, b in zip(together.contexts, one_by_one.contexts, strict=True):
                self.assertEqual((a.name, a.num_tokens), (b.name, b.num_tokens))
                np.testing.assert_allclose(a.final_loss, b.final_loss, rtol=1e-5)

    def test_segments_are_written_one_after_the_other(self):
        text = "!a:b!!c:d!!e:f!|"
        said = self.write(self.run_path, [text], segment_tokens=10, num_write_steps=3, show=True)
        self.assertIn("0.txt: 16 tokens", said)
        opened = open_model(self.run_path, {})
        ids = opened.tokenizer.encode(text)
        write = jax.jit(functools.partial(opened.model.write_memory, num_steps=3))
        memory, _ = write(opened.params, ids[None, :10])
        memory, _ = write(opened.params, np.pad(ids[None, 10:], ((0, 0), (0, 4))), memory=memory)
        stored = load_memory(self.out, opened.model, opened.params)
        np.testing.assert_allclose(stored, memory, rtol=1e-5, atol=1e-6)
        (context,) = read_header(self.out).contexts
        self.assertEqual(np.shape(context.write_losses), (2, 3))

    def test_caches_of_several_lengths(self):
        workdir = self.folder / "full"
        random_run(workdir, tiny_config("full_context"))
        texts = ["!a:b!!c:d!|", "!e:f!" * 5]
        said = self.write(str(workdir), texts)
        self.assertRegex(said, r"0\.txt: 11 tokens \| WRITE loss [\d.]+ \| memory")
        answers = self.ask("?!a:")
        opened = open_model(str(workdir), {})
        for text, got in zip(texts, answers, strict=True):
            ids = opened.tokenizer.encode(text)[None]
            memory, _ = opened.model.write_memory(opened.params, ids)
            self.assertEqual(answer(opened, memory, ["?!a:"]), [got])

    def test_a_pretrained_model(self):
        options = {"num_memory_tokens": 4, "num_write_steps": 30}
        said = self.write(self.words_path, ["the cat sat on a mat"], options, show=True)
        self.assertIn("6 tokens", said)
        header = read_header(self.out)
        (context,) = header.contexts
        self.assertLess(context.final_loss, context.write_losses[0][0])
        self.assertEqual(header.config["num_memory_tokens"], 4)
        answers = self.ask("the cat", max_new_tokens=5)
        opened = open_model(self.words_path, {"num_memory_tokens": 4})
        memory = load_memory(self.out, opened.model, opened.params)
        self.assertEqual(answer(opened, memory, ["the cat"], 5), answers)
        embedding = np.asarray(opened.params["lm"]["embedding"])
        np.testing.assert_allclose(
            opened.params["initial_memory"], np.tile(embedding.mean(0), (4, 1)), atol=1e-6
        )

    def test_rows_without_a_token_are_never_decoded(self):
        folder = str(self.folder / "rows")
        words(folder, more_rows=1000)
        said = self.write(folder, ["the cat sat"], {"num_write_steps": 1}, show=True)
        self.assertNotIn("not in the vocabulary", said)
        self.assertRegex(said, r"places:\n  \w+( \w+){2}$")
        ((text,),) = self.ask("the cat", max_new_tokens=3)
        self.assertRegex(text, r"^\w+( \w+){2}$")

    def test_texts_begin_as_the_tokenizer_says(self):
        folder = self.folder / "begins"
        words(folder)
        file = folder / "tokenizer_config.json"
        special = {"bos_token": "[UNK]", "add_bos_token": True, "eos_token": "[END]"}
        file.write_text(json.dumps(special))
        opened = open_model(str(folder))
        begin = opened.tokenizer.backend.token_to_id("[UNK]")
        context = encode_context(Context("a", "the cat"), opened.tokenizer, pad_id=0, limit=9)
        self.assertEqual(context.tolist(), [begin, *opened.tokenizer.encode("the cat")])
        memory = opened.model.initial_memory(opened.params, 1)
        self.assertEqual(encode_questions(opened, memory, ["the cat"], 1)[0, 0], begin)
        self.assertTrue(opened.notes["options"]["add_begin_token"])
        without = open_model(str(folder), {"add_begin_token": False})
        self.assertIsNone(without.tokenizer.begin_id)
        earlier = {"model": str(folder), "options": {}}  # of before there was that option
        self.assertIsNone(reopen_model(str(self.out), earlier).tokenizer.begin_id)
        again = reopen_model(str(self.out), opened.notes)
        self.assertEqual(again.tokenizer.begin_id, begin)

    @parameterized.parameters(None, 0.3)
    def test_the_rate_of_adam_is_in_units_of_the_embeddings(self, rate):
        opened = open_model(self.words_path, {"write_learning_rate": rate})
        optimizer, embedding = opened.model.write_optimizer, opened.params["lm"]["embedding"]
        gradient = jax.numpy.array([2.0, -3.0])
        update, _ = optimizer.update(gradient, optimizer.init(gradient))
        size = (rate or WRITE_LEARNING_RATES["adam"]) * np.sqrt(np.square(embedding).mean())
        np.testing.assert_allclose(update, [-size, size], rtol=1e-4)

    def test_plain_steps_of_a_pretrained_model(self):
        options = {"write_optimizer": "sgd", "write_learning_rate": 0.5, "num_write_steps": 2}
        self.write(self.words_path, ["dogs run home"], options)
        opened = open_model(self.words_path, {})
        ids = opened.tokenizer.encode("dogs run home")[None]
        memory = opened.model.initial_memory(opened.params, 1)
        plain = gradmem_jax.GradMem(opened.model.config)
        config = plain.config
        self.assertEqual(config.write_head, False)
        for _ in range(2):
            loss = lambda m: plain.write_token_losses(opened.params, m, ids).mean()
            memory = memory - 0.5 * jax.jit(jax.grad(loss))(memory)
        stored = load_memory(self.out, opened.model, opened.params)
        np.testing.assert_allclose(stored, memory, rtol=1e-4, atol=1e-5)

    def test_refuses_another_model(self):
        self.write(self.run_path)
        other = self.folder / "other"
        random_run(other, tiny_config(seed=1))
        with self.assertRaisesRegex(ValueError, "other parameters"):
            self.ask("?!a:", model=str(other))
        with self.assertRaisesRegex(ValueError, "another configuration"):
            self.ask("?!a:", model=self.words_path)
        moved = pathlib.Path(self.run_path).with_name("moved")
        os.rename(self.run_path, moved)
        self.addCleanup(os.rename, moved, self.run_path)
        with self.assertRaisesRegex(ValueError, "no model .*/run; say with --model where"):
            self.ask("?!a:")
        self.assertLen(self.ask("?!a:", model=str(moved)), 3)

    def test_refuses_a_model_of_another_kind(self):
        self.write(self.words_path, ["the cat"], {"num_memory_tokens": 3, "num_write_steps": 1})
        with self.assertRaisesRegex(ValueError, "was written with {'num_mem.* is a run, .*no such"):
            self.ask("the cat", model=self.run_path)

    @parameterized.parameters(
        ("folder", {}, "config.json"),
        ("none", {}, "there is no model"),
        ("run", {"write_optimizer": "adam"}, "run is a run, .*leave out --write_optimizer"),
        ("run", {"tokenizer_path": "x"}, r"run is a run, .*leave out --tokenizer\."),
        ("words", {"checkpoint_name": "best"}, r"pretrained .*leave out --checkpoint\."),
        ("words", {"write_learning_rate": -1.0}, "write_learning_rate=-1.0"),
        ("words", {"write_optimizer": "lion"}, "choose one of"),
        ("run", {"checkpoint_name": "77"}, "no checkpoint '77'"),
    )
    def test_refuses_to_open(self, name, options, message):
        (self.folder / "folder").mkdir(exist_ok=True)
        with self.assertRaisesRegex(ValueError, message):
            open_model(str(self.folder / name), options)

    def test_refuses_contexts_before_anything_is_compiled(self):
        opened = open_model(self.words_path, {})
        contexts = [Context("good", "the cat"), Context("long", "cat " * 57)]
        with (
            mock.patch.object(jax, "jit", side_effect=AssertionError),
            self.assertRaisesRegex(ValueError, "long has 57 tokens, .* at most 56"),
        ):
            write_contexts(opened, contexts)

    def test_refuses_more_losses_than_a_file_has_room_for_before_anything_is_compiled(self):
        opened = open_model(self.words_path, {})
        contexts = [Context("a", "the cat"), Context("b", "the cat sat on a mat")]
        for steps, how, refused in (
            (1_000_000, {"segment_tokens": 2}, False),
            (4_000_000, {"segment_tokens": 2}, True),
            (8_000_000, {}, True),
            (3_000_000, {}, False),
        ):
            count = steps * (4 if how else 2)
            message = rf"2 contexts, .* {count} WRITE steps, need about {12 * count // 10**6}\d+ b"
            with (
                mock.patch.object(jax, "jit", side_effect=AssertionError),
                self.assertRaisesRegex(*(ValueError, message) if refused else (AssertionError, "")),
            ):
                write_contexts(opened, contexts, num_write_steps=steps, **how)

    def test_refusals_of_ask(self):
        self.write(self.run_path)
        for question, how, message in (
            (" ", {}, "the question ' ' is empty"),
            ("?!\udcff:", {}, "is not UTF-8 text"),
            ("?!a:", {"max_new_tokens": 2046}, r"has 4 tokens; .* room for 0 beside"),
            ("?!a:", {"pattern": "z"}, "no context 'z'; it has"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.ask(question, **how)
        self.out.write_bytes(self.out.read_bytes()[:-3])
        with self.assertRaisesRegex(ValueError, "cut short"):
            self.ask("?!a:")


if __name__ == "__main__":
    absltest.main()
