"""The page itself, in Gradio: what is where, and what happens when something is pressed."""

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.demo_page import drawing
from experiments.demo_page.models import PageModel
from experiments.demo_page.traces import Trace
from experiments.demo_page.work import LARGEST_UPLOAD, News, Work, read_text, refusal

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError as missing:
    raise ValueError(
        f"the page needs gradio, which is not installed ({missing}): pip install -e '.[demo]'."
    ) from missing

_CSS = pathlib.Path(__file__).with_name("page.css")
_TITLE = (
    '<div class="gm-title"><h1>GradMem</h1><p>A frozen language model writes a text into a few '
    "vectors by gradient descent, and answers from them alone.</p></div>"
)
_EMPTY = '<div class="gm-empty">Press <b>Write</b> to see the text go into memory.</div>'
# Nothing is fetched from elsewhere, whatever a text or a model's name holds.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
_SECONDS_BETWEEN = 0.15  # pictures of a WRITE that runs
_LONGEST_LABEL = 28
_DELETE_AFTER = 3600  # seconds
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "computing", "concurrency_limit": 1}
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_COMPUTES = _ONE_AT_A_TIME | _QUIET


class _OnlyFromHere:
    """Tells browsers to load nothing from other hosts."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = message | {"headers": [*message.get("headers", []), policy]}
            await send(message)

        await self._app(scope, receive, send_with_policy)


class Panel(NamedTuple):
    """One document: its text, the buttons, and what is in memory."""

    column: gr.Column
    trace: gr.State
    text: gr.Textbox
    examples: gr.Dataset
    num_steps: gr.Slider
    num_memory: gr.Number
    write: gr.Button
    write_on: gr.Button
    stop: gr.Button
    save: gr.DownloadButton
    status: gr.HTML
    step: gr.Slider
    view: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """What a WRITE changes."""
        return [
            *(self.trace, self.status, self.step, self.view),
            *(self.write, self.write_on, self.stop, self.save),
        ]


def build(work: Work, files: str | pathlib.Path) -> gr.Blocks:
    """Makes the page.

    Args:
        work: what computes.
        files: a folder for files to download; `launch` empties it.
    """
    first = work.models.get(work.models.names[0])
    with gr.Blocks(title="GradMem", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        with gr.Row(elem_id="top"):
            with gr.Column(scale=7, min_width=300):
                gr.HTML(_TITLE)
                about = gr.HTML(_about(first), elem_id="about")
            with gr.Column(scale=3, min_width=260):
                model = gr.Dropdown(
                    work.models.names,
                    value=work.models.names[0],
                    label="Model",
                    elem_id="model",
                    container=False,
                    interactive=True,
                )
                is_pair = gr.Checkbox(
                    label="Two texts side by side", elem_id="pair", container=False
                )
        with gr.Row(elem_id="documents"):
            panels = [_make_panel(work, files, model, first, i) for i in range(2)]
        with gr.Column(elem_id="asking"):
            with gr.Row():
                question = gr.Textbox(
                    first.examples.questions[0],
                    label="Ask the memory",
                    elem_id="question",
                    lines=1,
                    max_lines=1,
                    scale=5,
                    max_length=2000,
                )
                ask = gr.Button("Ask", variant="primary", elem_id="ask", scale=1, min_width=120)
            questions = _examples(first.examples.questions, "questions", "Questions")
            answers = gr.HTML(elem_id="answers")

        _when_model_changes(work, model, about, panels, question, questions, answers)
        is_pair.change(_visible, is_pair, panels[1].column, queue=False, **_QUIET)
        _when_example_is_chosen(questions, question)
        asked: list[Any] = [question, is_pair]
        asked += [part for panel in panels for part in (panel.trace, panel.step)]

        def answer(
            question: str, is_pair: bool, first: Any, first_step: int, second: Any, step: int
        ) -> str:
            memories = [("First text", first, first_step), ("Second text", second, step)]
            return work.ask(question, memories if is_pair else memories[:1])

        gr.on(
            [ask.click, question.submit],
            answer,
            asked,
            answers,
            **_COMPUTES | {"show_progress": "minimal"},
        )
    return page


def _about(model: PageModel) -> str:
    return f'<p class="gm-quiet">{drawing.escape(model.describe())}</p>'


def _examples(texts: tuple[str, ...], elem_id: str, label: str) -> gr.Dataset:
    return gr.Dataset(
        components=["textbox"],
        samples=[[text] for text in texts],
        sample_labels=[_label(text) for text in texts],
        label=label,
        elem_id=elem_id,
        type="values",
        samples_per_page=6,
    )


def _samples(texts: tuple[str, ...]) -> Any:
    labels = [_label(text) for text in texts]
    return gr.update(samples=[[text] for text in texts], sample_labels=labels)


def _label(text: str) -> str:
    """A text, or how it begins."""
    return text if len(text) <= _LONGEST_LABEL else f"{text[:_LONGEST_LABEL].rsplit(' ', 1)[0]} …"


def _visible(is_visible: bool) -> Any:
    return gr.update(visible=is_visible)


def _when_example_is_chosen(examples: gr.Dataset, box: gr.Textbox) -> None:
    def take(sample: list[str]) -> str:
        return sample[0]

    examples.click(take, examples, box, queue=False, **_QUIET)


def _make_panel(
    work: Work, files: str | pathlib.Path, model: gr.Dropdown, first: PageModel, number: int
) -> Panel:
    """A document with its buttons; the second one appears when it is asked for."""
    name = f"-{number + 1}"
    texts = first.examples.texts
    column = gr.Column(visible=number == 0, min_width=320, elem_id=f"panel{name}")
    with column, gr.Row():
        with gr.Column(scale=4, min_width=300):
            text = gr.Textbox(
                texts[number % len(texts)],
                label="Text",
                lines=6,
                max_lines=16,
                elem_id=f"text{name}",
            )
            examples = _examples(texts, f"texts{name}", "Texts to try")
            with gr.Row():
                num_steps = gr.Slider(
                    0,
                    first.most_steps,
                    first.num_write_steps,
                    step=1,
                    label="WRITE steps K",
                    elem_id=f"steps{name}",
                    buttons=[],
                    min_width=150,
                    scale=3,
                )
                num_memory = gr.Number(
                    first.num_memory_tokens,
                    label="Memory vectors",
                    precision=0,
                    minimum=1,
                    interactive=not first.is_trained,
                    elem_id=f"memory{name}",
                    min_width=110,
                    scale=2,
                )
            with gr.Row():
                write = gr.Button("Write", variant="primary", elem_id=f"write{name}", min_width=90)
                write_on = gr.Button(
                    "Write on", interactive=False, elem_id=f"write-on{name}", min_width=90
                )
                stop = gr.Button("Stop", interactive=False, elem_id=f"stop{name}", min_width=90)
            status = gr.HTML(elem_id=f"status{name}")
            with gr.Row():
                upload = gr.UploadButton(
                    "Open text",
                    file_types=[".txt", ".md"],
                    size="sm",
                    elem_id=f"upload{name}",
                    min_width=90,
                )
                load = gr.UploadButton(
                    "Load memory",
                    file_types=[".safetensors"],
                    size="sm",
                    elem_id=f"load{name}",
                    min_width=90,
                )
                save = gr.DownloadButton(
                    "Save memory",
                    interactive=False,
                    size="sm",
                    elem_id=f"save{name}",
                    min_width=90,
                )
        with gr.Column(scale=6, min_width=360):
            step = gr.Slider(
                0,
                1,
                0,
                step=1,
                label="After step",
                interactive=False,
                elem_id=f"step{name}",
                buttons=[],
            )
            view = gr.HTML(_EMPTY, elem_id=f"view{name}")
    trace = gr.State(None, time_to_live=_DELETE_AFTER)
    panel = Panel(
        *(column, trace, text, examples, num_steps, num_memory, write, write_on, stop, save),
        *(status, step, view),
    )
    _when_pressed(work, files, model, panel)
    _when_example_is_chosen(examples, text)

    def load_memory(path: str, name: str, num_memory: int | None) -> tuple[Any, ...]:
        return _show(panel, work, files, work.load(path, name, num_memory))

    upload.upload(read_text, upload, [text, status], queue=False, **_QUIET)
    load.upload(load_memory, [load, model, num_memory], panel.shown, **_COMPUTES)

    def look(trace: Trace | None, step: int) -> Any:
        return gr.skip() if trace is None else drawing.view(trace, int(step))

    step.input(look, [trace, step], view, queue=False, trigger_mode="always_last", **_QUIET)
    return panel


def _when_pressed(work: Work, files: str | pathlib.Path, model: gr.Dropdown, panel: Panel) -> None:
    """What Write, Write on and Stop do."""

    def run(news: Iterator[News]) -> Iterator[tuple[Any, ...]]:
        last = 0.0
        for one in news:
            if one.is_done or time.monotonic() - last > _SECONDS_BETWEEN:
                yield _show(panel, work, files, one)
                last = time.monotonic()

    def write(name: str, m: int | None, text: str, k: int) -> Iterator[tuple[Any, ...]]:
        yield from run(work.write(name, m, text, int(k)))

    def write_on(
        name: str, m: int | None, text: str, k: int, trace: Trace | None
    ) -> Iterator[tuple[Any, ...]]:
        yield from run(work.write(name, m, text, int(k), trace))

    def stop(trace: Trace | None) -> tuple[Any, ...]:
        return _show(panel, work, files, News(drawing.status("Stopped."), trace, True))

    inputs = [model, panel.num_memory, panel.text, panel.num_steps]
    written = panel.write.click(write, inputs, panel.shown, **_COMPUTES)
    on = panel.write_on.click(write_on, [*inputs, panel.trace], panel.shown, **_COMPUTES)
    panel.stop.click(stop, panel.trace, panel.shown, cancels=[written, on], queue=False, **_QUIET)


def _show(panel: Panel, work: Work, files: str | pathlib.Path, news: News) -> tuple[Any, ...]:
    """Values of `Panel.shown`."""
    trace = news.trace
    buttons = (
        gr.update(interactive=news.is_done),
        gr.update(),
        gr.update(interactive=not news.is_done),
    )
    if trace is None:
        on = gr.update() if news.is_done else gr.update(interactive=False)
        return gr.skip(), news.status, gr.skip(), gr.skip(), buttons[0], on, buttons[2], gr.skip()
    save = gr.update(interactive=False)
    if news.is_done:
        save = gr.update(value=work.save(trace, files), interactive=True)
    most = max(trace.last if news.is_done else trace.num_steps, 1)
    step = gr.update(maximum=most, value=trace.last, interactive=trace.last > 0)
    on = gr.update(interactive=news.is_done)
    view = drawing.view(trace, trace.last)
    return trace, news.status, step, view, buttons[0], on, buttons[2], save


def _when_model_changes(
    work: Work,
    model: gr.Dropdown,
    about: gr.HTML,
    panels: list[Panel],
    question: gr.Textbox,
    questions: gr.Dataset,
    answers: gr.HTML,
) -> None:
    """Opens another model, and offers what it can be tried with."""
    outputs = [about, question, questions, answers]
    for panel in panels:
        outputs += [*panel.shown, panel.text, panel.examples, panel.num_steps, panel.num_memory]

    def change(name: str) -> Iterator[tuple[Any, ...]]:
        nothing = [gr.skip()] * (len(outputs) - 1)
        yield f'<p class="gm-quiet">Opening {drawing.escape(name)} …</p>', *nothing
        try:
            found = work.model(name)
        except Exception as error:
            yield refusal(error), *nothing
            return
        texts, asked = found.examples
        row = [_about(found), asked[0], _samples(asked), ""]
        for i in range(len(panels)):
            quiet = gr.update(interactive=False)
            row += [None, "", gr.update(maximum=1, value=0, interactive=False), _EMPTY]
            row += [gr.update(interactive=True), quiet, quiet, quiet]
            row += [texts[i % len(texts)], _samples(texts)]
            row += [gr.update(maximum=found.most_steps, value=found.num_write_steps)]
            row += [gr.update(value=found.num_memory_tokens, interactive=not found.is_trained)]
        yield tuple(row)

    model.input(change, model, outputs, **_COMPUTES)


@contextlib.contextmanager
def serve(work: Work, host: str, port: int) -> Iterator[str]:
    """Serves the page from a thread as long as this block runs; gives its address.

    Args:
        work: what computes.
        host: the address to be reached at; 127.0.0.1 is this machine alone.
        port: 0 takes a free one.

    Raises:
        ValueError: the port is taken.
    """
    with (
        tempfile.TemporaryDirectory(prefix="gradmem_page_") as folder,
        _environment("GRADIO_TEMP_DIR", folder),  # of uploads
    ):
        page = build(work, folder)
        page.queue(max_size=32, api_open=False)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port or None,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                ssr_mode=False,
                pwa=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                max_file_size=LARGEST_UPLOAD,
                theme=_theme(),
                css_paths=_CSS,
                app_kwargs={"middleware": [Middleware(_OnlyFromHere)]},
            )
        except OSError as error:
            raise ValueError(
                f"the page cannot be served at --host={host} --port={port}: another program has "
                "the port, or this machine has no such address. Choose others; --port=0 finds one."
            ) from error
        try:
            yield address
        finally:
            page.close(verbose=False)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable of the environment in this block."""
    earlier = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if earlier is not None:
            os.environ[name] = earlier


def _theme() -> gr.Theme:
    """Colours, and fonts that every machine has."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
