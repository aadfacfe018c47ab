"""What the page does when something is pressed, without the page: one piece of work at a time."""

import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from typing import NamedTuple

from experiments.demo_page import drawing, traces
from experiments.demo_page.asking import Answers, question_notes
from experiments.demo_page.models import Models, PageModel
from experiments.demo_page.traces import Trace, Traces
from experiments.program.console import log
from experiments.program.startup import is_refusal
from gradmem_jax.checks import require
from gradmem_jax.storage import reading

LARGEST_UPLOAD = 64 * reading.MEBIBYTE
_MOST_SAVED = 64  # files to download
_LARGEST_TEXT = reading.MEBIBYTE


class News(NamedTuple):
    """What there is to show.

    Attributes:
        status: a line of HTML.
        trace: what is in memory, if that changed.
        is_done: whether nothing more comes.
    """

    status: str
    trace: Trace | None = None
    is_done: bool = False


class Work:
    """The models and all that was computed with them, for every visitor of the page."""

    def __init__(self, models: Models) -> None:
        """Takes the models."""
        self.models = models
        self._traces, self._answers = Traces(), Answers()
        self._saved: list[pathlib.Path] = []
        self._busy = threading.Lock()

    def model(self, name: str, num_memory_tokens: int | None = None) -> PageModel:
        """Opens a model; see `Models.get`."""
        with self._busy:
            model = self.models.get(name, num_memory_tokens)
            self._traces.keep_of(self.models.is_open)
            return model

    def warm_up(self) -> None:
        """Writes and asks the first example, so that what it compiles is there when it is asked."""
        name = self.models.names[0]
        model = self.model(name)
        text, question = model.examples.texts[0], model.examples.questions[0]
        if model.is_trained:  # others take minutes
            trace = None
            for news in self.write(name, None, text, model.num_write_steps):
                trace = news.trace
            self.ask(question, [("", trace, model.num_write_steps)])

    def write(
        self,
        name: str,
        num_memory_tokens: int | None,
        text: str,
        num_steps: int,
        start: Trace | None = None,
    ) -> Iterator[News]:
        """Writes a text with the model of a name; what is refused is news, too."""
        try:
            yield News(drawing.status("Preparing; a first text takes a moment …"))
            model = self.model(name, num_memory_tokens)
            steps = self._traces.write(model, text, num_steps, start)
            while True:
                with self._busy:  # not between steps: a visitor may leave there
                    trace = next(steps, None)
                if trace is None:
                    return
                is_done = trace.last == num_steps
                yield News(_progress(trace), trace, is_done)
        except Exception as error:
            yield News(refusal(error), is_done=True)

    def ask(self, question: str, asked: list[tuple[str, Trace | None, int]]) -> str:
        """Asks memories, each with a name and a step; returns the answers as HTML."""
        try:
            known = [(name, trace, step) for name, trace, step in asked if trace is not None]
            require(bool(known), "There is no memory to ask yet: write a text first.")
            with self._busy:
                found = [
                    (name, self._answers.ask(trace, int(step), question))
                    for name, trace, step in known
                ]
            notes = question_notes(known[0][1], question)
            return drawing.status(_sentence(notes), "warning") + drawing.answers(found)
        except Exception as error:
            return refusal(error)

    def load(self, path: str, name: str, num_memory_tokens: int | None) -> News:
        """Reads a memory file that was uploaded, and deletes it."""
        try:
            model = self.model(name, num_memory_tokens)
            with self._busy:
                trace = traces.load(path, model)
            said = f"Loaded the memory of {trace.context.name}. {trace.notes}"
            return News(drawing.status(said), trace, True)
        except Exception as error:
            return News(refusal(error, path), None, True)
        finally:
            os.unlink(path)

    def rest(self) -> None:
        """Returns when the work that runs is done."""
        with self._busy:
            pass

    def save(self, trace: Trace, folder: str | pathlib.Path) -> str:
        """Writes the memory of a trace to a file in a folder of its own; returns its path."""
        path = pathlib.Path(tempfile.mkdtemp(dir=folder)) / "memory.safetensors"
        with self._busy:
            traces.save(path, trace)
            self._saved.append(path)
            while len(self._saved) > _MOST_SAVED:
                shutil.rmtree(self._saved.pop(0).parent, ignore_errors=True)
        return str(path)


def read_text(path: str) -> tuple[str | None, str]:
    """Reads a text that was uploaded, and deletes it; returns it and a status."""
    try:
        text = reading.read_text(path, "text", _LARGEST_TEXT)
        return text.rstrip("\r\n"), ""
    except Exception as error:
        return None, refusal(error, path)
    finally:
        os.unlink(path)


def _progress(trace: Trace) -> str:
    notes = _sentence(trace.notes)
    if trace.last == trace.num_steps:
        tokens = len(trace.texts[-1].ids)
        said = f"Wrote {tokens} tokens in {trace.num_steps} steps, {trace.seconds:.1f} s."
        return drawing.status(said) + drawing.status(notes, "warning")
    said = f"Step {trace.last} of {trace.num_steps}"
    if trace.last:
        left = trace.seconds / trace.last * (trace.num_steps - trace.last)
        said += f", some {left:.0f} s left" if left >= 1 else ""
    return drawing.status(said + " …") + drawing.status(notes, "warning")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'.' if text and not text.endswith('.') else ''}"


def refusal(error: Exception, upload: str = "") -> str:
    """A line that says why something was not done; what is no refusal is told to the log alone.

    Args:
        error: what was raised.
        upload: the file that was read, which the line calls by its name: where uploads lie is
            nobody's business.
    """
    if not is_refusal(error):
        log.error("the page failed", exc_info=error)
        return drawing.status("This failed here; the log of the server says why.", "error")
    text = str(error).replace(upload, pathlib.Path(upload).name) if upload else str(error)
    return drawing.status(text, "error")
