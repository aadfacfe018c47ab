"""The page of experiments.demo: what it computes, and the page itself in a browser."""

import asyncio
import contextlib
import gc
import importlib.util
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
import urllib.request
import warnings
import weakref

import jax
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from experiments.answers.answering import answer, choose_contexts, open_memories
from experiments.answers.open_model import OpenModel, open_model
from experiments.demo_page import drawing, models, traces
from experiments.demo_page.models import FOLDER, Models, PageModel
from experiments.demo_page.space import write_space
from experiments.demo_page.traces import Traces
from experiments.demo_page.work import News, Work, read_text
from experiments.run.exported import exported_files
from gradmem_jax import RMT, GradMem, RMTConfig
from gradmem_jax.lm.pretrained.load import Pretrained, save_pretrained
from gradmem_jax.storage.memory_file import read_header
from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer
from tests.programs import environment
from tests.small import numpy_params, small_model

MODEL = FOLDER / "babi_qa2"
ANSWERS = (
    ("garden", "Mary", "office"),
    ("bathroom", "nobody", "garden"),
    ("bathroom", "Sandra", "office"),
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]


def forget_event_loops():
    """Frees those that Gradio leaves open, before they are found behind a test of another file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.set_event_loop(None)
        gc.collect()


def pretrained(folder):
    """A tiny random model of words, as Hugging Face stores it."""
    tokenizer = word_tokenizer(["the cat sat on a mat and saw dogs run home"])
    model = small_model(lm={"vocab_size": tokenizer.vocab_size, "max_positions": 64})
    lm = numpy_params(lambda: model.init(jax.random.key(0)))["lm"]
    save_pretrained(folder, Pretrained(model.config.lm, lm, tokenizer))


def setUpModule():
    """What all tests share: the shipped model, opened and compiled once."""
    global work, model
    work = Work(Models([str(MODEL)]))
    model = work.model("babi_qa2")


def written(text, num_steps=2, start=None):
    (*_, last) = work.write("babi_qa2", None, text, num_steps, start)
    assert last.is_done and last.trace is not None, last.status
    return last


def assert_close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def asked(trace, question, step=2):
    """The answers on the page, in their order."""
    return re.findall(r"gm-said[^>]*>([^<]*)<", work.ask(question, [("", trace, step)]))


class WorkTest(parameterized.TestCase):
    def test_examples_are_answered_from_memory(self):
        for text, answers in zip(model.examples.texts, ANSWERS, strict=True):
            trace = written(text).trace
            self.assertEqual(
                tuple(asked(trace, question)[0] for question in model.examples.questions), answers
            )

    @parameterized.named_parameters(
        ("gradient", small_model()),
        ("adam", small_model(optax.adam(0.1, eps_root=1e-8))),
        ("clipped", small_model(clip_norm=0.01, learned_write_learning_rate="token")),
        ("rmt", RMT(RMTConfig(lm=small_model().config.lm, num_memory_tokens=2))),
    )
    def test_steps_are_those_of_write_memory(self, small):
        tokenizer = word_tokenizer(["the cat sat on a mat"])
        params = numpy_params(lambda: small.init(jax.random.key(0)))
        opened = OpenModel(small, params, tokenizer, tokenizer.end_id, str, {})
        (*_, trace) = Traces().write(PageModel(("", None), opened, "", True), "the cat sat", 3)
        ids = np.tile(trace.texts[0].ids, (4, 1))
        memory, info = small.write_memory(params, ids, num_steps=np.arange(4))
        losses = jax.jit(small.write_token_losses)(params, memory, ids)
        for k, step in enumerate(trace.steps):
            assert_close(step.memory[0], memory[k])
            assert_close(step.losses[0], losses[k])
        if isinstance(small, GradMem):
            assert_close(trace.write_losses[:-1], info.losses[:, -1])

    def test_nothing_is_done_twice(self):
        text = model.examples.texts[0]
        trace = written(text).trace
        again = [x.trace for x in work.write("babi_qa2", None, text, 2) if x.trace]
        self.assertEqual(again, [trace])
        first, second = (work._answers.ask(trace, 2, "Where is John?") for _ in range(2))
        self.assertIs(first, second)

    def test_texts_of_similar_lengths_share_what_is_compiled(self):
        written(model.examples.texts[0])
        with jax.log_compiles(), self.assertNoLogs("jax", "WARNING"):
            written(model.examples.texts[1])

    def test_control_and_full_context_stand_beside(self):
        trace = written(model.examples.texts[0]).trace
        page = work.ask("Where is the milk?", [("", trace, 2)])
        sources = ("Memory after 2 of 2 steps", "K = 0, nothing written", "Whole text before")
        self.assertSequenceEqual(sorted(sources, key=page.index), sources)
        self.assertIn("never from a whole text", page)
        other = written(model.examples.texts[1]).trace
        self.assertEqual(asked(trace, "Who has the milk?")[1], asked(other, "Who has the milk?")[1])
        self.assertEqual(asked(trace, "Where is John?", 0)[0], asked(trace, "Where is John?", 0)[1])
        shares = [one.likely for one in work._answers.ask(trace, 2, "Where is the milk?")]
        self.assertEqual([len(x) for x in shares], [5, 5, 5])
        self.assertBetween(sum(share for _, share in shares[1]), 0.5, 1)

    def test_writing_on(self):
        start = written(model.examples.texts[0]).trace
        trace = written("Mary dropped the milk.", 2, start).trace
        opened = model.opened
        memory, _ = opened.model.write_memory(opened.params, start.texts[0].ids[None])
        memory, _ = opened.model.write_memory(
            opened.params, trace.texts[1].ids[None], memory=memory
        )
        assert_close(trace.steps[-1].memory, memory)
        self.assertEqual([len(x) for x in trace.steps[0].losses], [24, 5])
        self.assertEqual(trace.context.num_tokens, 29)
        self.assertLen(trace.context.write_losses, 2)

    @parameterized.parameters(
        (" ", 2, "There is no text to write."),
        ("Mary " * 3000, 2, "has 3000 tokens, the model takes at most 2016 in one WRITE; shorten"),
        ("x" * 3_000_000, 2, "has 3000000 characters"),
        ("Mary", 99, "K is at most 8 here."),
        ("Mary", 1.5, "K=1.5 must be an integer &gt;= 0"),
        ("Mary", None, "K=None must be an integer &gt;= 0"),
        ("a [PAD]", 2, "holds the padding token"),
    )
    def test_refuses(self, text, num_steps, message):
        (*_, last) = work.write("babi_qa2", None, text, num_steps)
        self.assertIsNone(last.trace)
        self.assertTrue(last.is_done)
        self.assertIn('gm-error" role="alert"', last.status)
        self.assertIn(message, last.status)
        self.assertNotIn("--", last.status)  # flags are of programs

    def test_unknown_words_are_named(self):
        with self.assertNoLogs("experiments", "WARNING"):  # what visitors type is theirs
            last = written(f"The dragon went to the kitchen. {model.examples.texts[0]}")
            page = work.ask("Where is the dragon?", [("", last.trace, 2)])
        self.assertIn("The model does not know &#x27;The&#x27;, &#x27;dragon&#x27;;", last.status)
        self.assertIn("The model does not know &#x27;dragon&#x27;;", page)
        self.assertIn("Ask something.", work.ask(" ", [("", last.trace, 2)]))
        self.assertIn("no memory to ask yet", work.ask("Where is John?", [("", None, 0)]))

    def test_what_is_typed_is_escaped(self):
        text = '<script>alert(1)</script> "><img src=x onerror=alert(1)>'
        last = written(f"{text} Mary is there.")
        question = "<b onclick='x'>?"
        pages = [
            last.status,
            drawing.view(last.trace, 2),
            work.ask(question, [(text, last.trace, 2)]),
        ]
        for page in pages:
            self.assertNotRegex(page, "<script|<img src=x|<b onclick")
        self.assertIn("&lt;", pages[1])

    def test_colours_change_from_step_to_step(self):
        trace = written(model.examples.texts[0]).trace
        colours = [re.findall(r"--loss:(\d+)%", drawing.view(trace, k)) for k in range(3)]
        self.assertLen(colours[0], 24)
        means = [np.mean(list(map(int, row))) for row in colours]
        self.assertGreater(means[0], 2 * means[1])
        far = [drawing.moved(trace, k) for k in range(3)]
        self.assertEqual(far[0].max(), 0)
        self.assertGreater(far[1].min(), 0)

    def test_memory_files(self):
        trace = written(model.examples.texts[0]).trace
        folder = pathlib.Path(self.create_tempdir().full_path)
        path = work.save(trace, folder)
        opened = open_model(str(MODEL))
        header = read_header(path)
        chosen = choose_contexts(path, header, "*")
        ((_, memory),) = open_memories(path, opened, header, chosen, 1)  # as experiments.ask
        self.assertEqual(answer(opened, memory, ["Where is the milk?"], 4), [["garden"]])
        damaged = folder / "damaged.safetensors"
        damaged.write_bytes(pathlib.Path(path).read_bytes()[:-100])
        loaded = work.load(path, "babi_qa2", None)
        self.assertFalse(os.path.exists(path))
        self.assertEqual(asked(loaded.trace, "Where is the milk?")[:2], ["garden", "office"])
        self.assertIn("no text in it", drawing.view(loaded.trace, 0))
        on = written("Mary dropped the milk.", 2, loaded.trace).trace
        self.assertEqual(on.context.num_tokens, 29)
        self.assertIn("no text in it", drawing.view(on, 2))
        for trace in (loaded.trace, on):  # the whole text is not what is known of it
            *_, whole = work._answers.ask(trace, 2, "Where is the milk?")
            self.assertEqual(whole.text, "")
            self.assertIn("it is not known here", whole.note)
        refused = work.load(str(damaged), "babi_qa2", None)
        self.assertIsNone(refused.trace)
        self.assertIn("damaged.safetensors", refused.status)
        self.assertNotIn(str(folder), refused.status)

    def test_memory_of_another_model(self):
        with tempfile.TemporaryDirectory() as name:
            pretrained(pathlib.Path(name) / "words")
            here = Work(Models([str(pathlib.Path(name) / "words"), str(MODEL)]))
            (*_, last) = here.write("words", 3, "the cat", 1)
            self.assertEqual(last.trace.steps[0].memory.shape[1], 3)
            path = here.save(last.trace, name)
            self.assertIn("another configuration", here.load(path, "babi_qa2", None).status)
            (*_, last) = here.write("babi_qa2", None, "Mary", 1, last.trace)
            self.assertIn("of another model", last.status)

    def test_a_pretrained_model_is_opened_once(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        for name in "abc":
            pretrained(folder / name)
        with unittest.mock.patch.object(models, "open_model", wraps=open_model) as opens:
            here = Work(Models([str(folder / name) for name in "abc"]))
            first = here.model("a")
            for m in (None, 8, 3, 5, 3):
                other = here.model("a", m)
                self.assertEqual(other.num_memory_tokens, m or 8)
                self.assertIs(other.opened.params["lm"], first.opened.params["lm"])
            self.assertIs(here.model("a", 8), first)
            self.assertEqual(opens.call_count, 1)
            three = here.model("a", 3)
            again = open_model(str(folder / "a"), {"num_memory_tokens": 3})
            self.assertEqual(three.opened.notes, again.notes)
            self.assertEqual(three.opened.model.config, again.model.config)
            jax.tree.map(np.testing.assert_array_equal, three.opened.params, again.params)
            for m, said in ((0, "an integer >= 1"), (2.5, "an integer >= 1"), (64, "take fewer")):
                with self.assertRaisesRegex(ValueError, said):
                    here.model("a", m)
            list(here.write("a", 3, "the cat", 0))
            gone = weakref.ref(three)
            del first, other, three
            here.model("b")
            here.model("c")
            gc.collect()
            self.assertIsNone(gone())

    def test_text_files(self):
        path = pathlib.Path(self.create_tempdir().full_path) / "a.txt"
        path.write_bytes("\ufeffMary went.\r\n".encode())
        self.assertEqual(read_text(str(path)), ("Mary went.", ""))
        path.write_bytes(b"\xff\xfe")
        text, status = read_text(str(path))
        self.assertIsNone(text)
        self.assertIn("a.txt is not UTF-8 text", status)
        self.assertFalse(path.exists())

    def test_what_fails_is_for_the_log(self):
        with (
            unittest.mock.patch.object(traces, "encode", side_effect=RuntimeError("secret")),
            self.assertLogs("experiments", "ERROR"),
        ):
            (*_, last) = work.write("babi_qa2", None, "Mary is there.", 1)
        self.assertIn("failed here", last.status)
        self.assertNotIn("secret", last.status)
        self.assertTrue(last.is_done)


@pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning")  # Gradio's
@unittest.skipIf("gradio" in MISSING, "the page needs gradio")
class PanelTest(absltest.TestCase):
    """What a document shows, without a browser."""

    def setUp(self):
        super().setUp()
        self.addCleanup(forget_event_loops)
        import gradio as gr

        from experiments.demo_page.panel import make_panel

        with gr.Blocks():
            self.panel = make_panel(model, gr.HTML(), 0)

    def are_on(self, updates):
        parts = ("write", "write_on", "stop", "save", "step")
        return [x for x in parts if updates[getattr(self.panel, x)].get("interactive")]

    def test_buttons(self):
        trace = written(model.examples.texts[0]).trace
        self.assertEqual(self.are_on(self.panel.show(News("waits"), trace)), ["stop"])
        running = self.panel.show(News("runs", trace))
        self.assertEqual(self.are_on(running), ["stop"])
        self.assertEqual(running[self.panel.answers], "")  # they are of another memory
        done = self.panel.show(News("done", trace, True))
        self.assertEqual(self.are_on(done), ["write", "write_on", "save", "step"])
        refused = self.panel.show(News("refused", is_done=True), trace)
        self.assertEqual(self.are_on(refused), ["write", "write_on", "save", "step"])
        self.assertNotIn(self.panel.view, refused)
        self.assertEqual(self.are_on(self.panel.show(News("refused", is_done=True))), ["write"])
        self.assertEqual(self.are_on(self.panel.change_model(model, 0)), ["write"])

    def test_stop(self):
        from experiments.demo_page.buttons import stopped

        trace = written(model.examples.texts[0]).trace
        self.assertIn("Stopped.", stopped(trace, None).status)
        earlier = stopped(trace, trace)
        self.assertIn("before the first step; the memory is the earlier one.", earlier.status)
        self.assertIsNone(earlier.trace)
        self.assertIn("before the first step.", stopped(None, None).status)


@pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning")  # Gradio's
@unittest.skipIf(MISSING, f"the page needs {MISSING}: pip install -e '.[demo]' playwright")
@unittest.skipIf(CHROMIUM is None, "there is no Chromium: apt-get install chromium")
class PageTest(absltest.TestCase):
    """The page in a browser; one server and one browser for all tests."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        from playwright.sync_api import sync_playwright

        from experiments.demo_page.server import serve

        stack = contextlib.ExitStack()
        cls.addClassCleanup(forget_event_loops)
        cls.addClassCleanup(stack.close)
        cls.address = stack.enter_context(serve(work, "127.0.0.1", 0))
        player = stack.enter_context(sync_playwright())
        cls.browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        stack.callback(cls.browser.close)

    def open(self, **options):
        """A page of its own, all whose requests are watched."""
        page = self.browser.new_page(viewport={"width": 1280, "height": 900}, **options)
        self.addCleanup(page.close)
        page.set_default_timeout(120_000)
        self.requests = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(self.address)
        page.wait_for_selector("#write-1")
        return page

    def colours(self, page):
        """The colours of the tokens as they are painted, when they stand still."""
        page.wait_for_timeout(500)
        script = "found => found.map(x => getComputedStyle(x).backgroundColor)"
        return page.locator("#view-1 .gm-text span").evaluate_all(script)

    def test_write_look_back_ask_save_and_load(self):
        page = self.open()
        page.click("#write-1")
        page.wait_for_selector('#view-1 [data-step="2"]')
        after = self.colours(page)
        self.assertLen(after, 24)
        step = page.locator("#step-1 input[type=number]")
        for typed, taken in (("-1", "0"), ("1.5", "1"), ("99", "2"), ("", "0")):
            step.fill(typed)
            step.blur()
            page.wait_for_selector(f'#view-1 [data-step="{taken}"]')
            page.wait_for_function(
                "x => document.querySelector('#step-1 input[type=number]').value == x", arg=taken
            )
        self.assertNotEqual(self.colours(page), after)
        page.fill("#step-1 input[type=number]", "2")
        page.press("#step-1 input[type=number]", "Enter")
        page.wait_for_selector('#view-1 [data-step="2"]')
        self.assertEqual(self.colours(page), after)
        page.click("#ask")
        page.wait_for_selector("#answers .gm-said")
        self.assertEqual(
            page.locator("#answers .gm-said").all_inner_texts(), ["garden", "office", "office"]
        )
        self.assertLen(page.locator("#answers li").all(), 15)
        with page.expect_download() as download:
            page.click("#save-1")
        path = str(pathlib.Path(self.create_tempdir().full_path) / "memory.safetensors")
        download.value.save_as(path)
        page.fill("#text-1 textarea", "John moved to the office.")
        page.click("#write-1")
        page.wait_for_function("document.querySelectorAll('#view-1 .gm-text span').length == 6")
        page.wait_for_selector("#answers:not(:has(.gm-said))", state="attached")
        self.upload(page, "#load-1", path)
        page.wait_for_selector("#view-1 .gm-view:not(:has(.gm-text))")
        page.click("#ask")
        page.wait_for_function(
            "document.querySelector('#answers').innerText.includes('not known here')"
        )
        self.assertEqual(page.locator("#answers .gm-said").first.inner_text(), "garden")
        self.only_from_here()

    def upload(self, page, button, path):
        with page.expect_file_chooser() as chooser:
            page.click(button)
        chooser.value.set_files(path)

    def only_from_here(self):
        """Nothing was asked of other hosts."""
        self.assertNotEmpty(self.requests)
        outside = [x for x in self.requests if not x.startswith((self.address, "data:", "blob:"))]
        self.assertEmpty(outside)
        self.assertStartsWith(self.address, "http://127.0.0.1:")

    def test_what_is_wrong_is_said(self):
        page = self.open()
        folder = pathlib.Path(self.create_tempdir().full_path)
        damaged, binary = folder / "damaged.safetensors", folder / "binary.txt"
        damaged.write_bytes(b"\x08" + bytes(100))
        binary.write_bytes(b"\xff\xfe\xfd")
        page.click("#ask")
        page.wait_for_selector("#answers .gm-error >> text=write a text first")
        page.fill("#text-1 textarea", "Mary " * 3000)
        page.click("#write-1")
        page.wait_for_selector("#status-1 .gm-error >> text=3000 tokens")
        text = f"dragon <img src=http://192.0.2.1/x> {model.examples.texts[0][:60]}"
        page.fill("#text-1 textarea", text)
        page.click("#write-1")
        page.wait_for_selector("#status-1 .gm-warning >> text=does not know")
        self.assertIn("'dragon'", page.inner_text("#status-1"))
        self.assertIn("<img src", page.inner_text("#view-1"))
        page.fill("#text-1 textarea", "")
        page.click("#write-1")
        page.wait_for_selector("#status-1 .gm-error >> text=no text to write")
        page.wait_for_selector("#write-on-1:not([disabled])")
        self.upload(page, "#load-1", damaged)
        page.wait_for_selector("#status-1 .gm-error >> text=damaged.safetensors")
        self.upload(page, "#upload-1", binary)
        page.wait_for_selector("#status-1 .gm-error >> text=not UTF-8")
        self.assertNotIn("Traceback", page.content())
        self.only_from_here()

    def test_a_long_write_is_stopped(self):
        memories, stopping = traces._memories, threading.Event()

        def until_stopped(*arguments):
            for i, step in enumerate(memories(*arguments)):
                time.sleep(0.3)  # what comes faster is not shown
                if i == 4:
                    stopping.wait(60)
                yield step

        page = self.open()
        page.fill("#steps-1 input[type=number]", "8")
        page.fill("#text-1 textarea", model.examples.texts[0].replace("Mary", "Daniel"))
        with unittest.mock.patch.object(traces, "_memories", until_stopped):
            page.click("#write-1")
            page.wait_for_selector("#status-1 >> text=Step 3 of 8")
            self.assertTrue(page.is_disabled("#write-1"))
            self.assertTrue(page.is_disabled("#save-1"))
            self.assertTrue(page.is_disabled("#step-1 input[type=range]"))
            page.click("#stop-1")
            page.wait_for_selector("#status-1 >> text=Stopping behind the step that runs")
            stopping.set()
            page.wait_for_selector("#status-1 >> text=Stopped.")
        page.wait_for_selector("#write-1:not([disabled])")
        self.assertLess(page.locator("#view-1 .gm-bar").count(), 9)
        page.click("#ask")
        page.wait_for_selector("#answers >> text=/Memory after \\d of 8 steps/")
        self.assertEqual(page.locator("#answers .gm-said").first.inner_text(), "garden")

    def test_two_texts_on_a_phone(self):
        page = self.open(color_scheme="dark")
        page.set_viewport_size({"width": 390, "height": 844})
        page.check("#pair input")
        for i in (1, 2):
            page.click(f"#write-{i}")
            page.wait_for_selector(f'#view-{i} [data-step="2"]')
        page.click("#ask")
        page.wait_for_function("document.querySelectorAll('#answers .gm-of').length == 2")
        said = page.locator("#answers article:first-of-type .gm-said").all_inner_texts()
        self.assertEqual(said, ["garden", "bathroom"])
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        self.assertEqual(page.evaluate(wide), 0)
        self.only_from_here()

    def test_only_what_was_uploaded_is_read_and_deleted(self):
        path = pathlib.Path(self.create_tempdir().full_path) / "a.txt"
        path.write_text("Mary is there.")
        with urllib.request.urlopen(f"{self.address}config") as answer:
            events = json.load(answer)["dependencies"]
        (first, *_) = (x for x in events if any("upload" in target for target in x["targets"]))
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        call = {"data": [file], "fn_index": first["id"], "session_hash": "stranger"}
        request = urllib.request.Request(
            f"{self.address}gradio_api/queue/join",
            json.dumps(call).encode(),
            {"content-type": "application/json"},
        )
        urllib.request.urlopen(request).close()
        where = f"{self.address}gradio_api/queue/data?session_hash=stranger"
        with urllib.request.urlopen(where, timeout=10) as answer:
            (done,) = (x for x in map(bytes.decode, answer) if "process_completed" in x)
        self.assertIn('"success":false', done)
        self.assertNotIn("Mary", done)
        self.assertTrue(path.exists())

    def test_pages_may_load_nothing_from_elsewhere(self):
        with urllib.request.urlopen(self.address) as answer:
            policy = answer.headers["content-security-policy"]
            content = answer.read().decode()
        self.assertStartsWith(policy, "default-src 'self' ")
        self.assertNotRegex(content, r"<(script|link)[^>]*(src|href)=.?https?://(?!127\.0\.0\.1)")


class SpaceTest(absltest.TestCase):
    def write(self):
        folder = pathlib.Path(self.create_tempdir().full_path) / "space"
        write_space(folder, [str(MODEL)], "cc-by-3.0")
        return folder

    @unittest.skipIf("gradio" in MISSING, "a Space names the version of gradio that is installed")
    def test_folder(self):
        folder = self.write()
        readme = (folder / "README.md").read_text()
        (front,) = re.findall(r"\A---\n(.*?)^---\n", readme, re.M | re.S)
        fields = dict(line.split(": ", 1) for line in front.splitlines())
        self.assertEqual(fields["sdk"], "gradio")
        self.assertEqual(fields["license"], "cc-by-3.0")
        self.assertTrue((folder / fields["app_file"]).is_file())
        self.assertLessEqual(len(fields["short_description"]), 60)  # the hub takes no more
        pin = f"gradio=={fields['sdk_version']}"
        self.assertIn(pin, (folder / "requirements.txt").read_text().splitlines())
        for name in exported_files(MODEL):
            copy = folder / "experiments/models/babi_qa2" / name
            self.assertEqual(copy.read_bytes(), (MODEL / name).read_bytes())
        for name in ("gradmem_jax/py.typed", "experiments/demo_page/page.css"):
            self.assertTrue((folder / name).is_file())
        self.assertIn("*.safetensors filter=lfs", (folder / ".gitattributes").read_text())
        with self.assertRaisesRegex(ValueError, "is not empty; name a new folder"):
            write_space(folder, [str(MODEL)], "cc-by-3.0")
        with self.assertRaisesRegex(ValueError, "no exported run; make one with"):
            write_space(folder / "new", [str(folder)], "mit")
        with self.assertRaisesRegex(ValueError, "^--license=.* is no identifier such as"):
            write_space(folder / "new", [str(MODEL)], "mit\nsdk: docker")

    @pytest.mark.slow
    @unittest.skipIf("gradio" in MISSING, "gradio is not installed")
    def test_app_starts_from_a_fresh_folder(self):
        folder = self.write()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        changes = {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": "", "SPACE_ID": ""}
        with subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=folder,
            env=environment(devices=1) | changes | {"GRADIO_SERVER_NAME": "127.0.0.1"},
            stdout=subprocess.PIPE,
            text=True,
        ) as app:
            self.addCleanup(app.kill)
            address = f"http://127.0.0.1:{port}"
            self.assertEqual(
                app.stdout.readline(), f"open {address}/ in a browser; Ctrl-C ends this\n"
            )
            with urllib.request.urlopen(address) as answer:
                self.assertIn("babi_qa2", answer.read().decode())
            app.terminate()
            self.assertEqual(app.wait(), 130)


if __name__ == "__main__":
    absltest.main()
