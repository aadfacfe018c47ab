"""One document of the page: what is where, and how it shows news."""

from typing import Any, NamedTuple

from experiments.demo_page import drawing
from experiments.demo_page.models import PageModel
from experiments.demo_page.toolkit import Updates, gr
from experiments.demo_page.traces import Trace
from experiments.demo_page.work import News

_EMPTY = '<div class="gm-empty">Press <b>Write</b> to see the text go into memory.</div>'
_LONGEST_LABEL = 28
_DELETE_AFTER = 3600  # seconds


class Panel(NamedTuple):
    """A document.

    Attributes:
        column: where it stands.
        trace: what is in memory.
        before: what was in memory when the WRITE that runs began.
        text: the text.
        upload: takes it from a file.
        examples: texts to try.
        num_steps: K.
        num_memory: m.
        write: writes the text into an empty memory.
        write_on: writes into the memory that is there.
        stop: ends a WRITE.
        load: takes a memory from a file.
        save: makes a file of the memory.
        file: that file, which is downloaded by a press on it that nobody sees.
        status: what happens.
        step: the step that is looked at.
        view: the memory after that step.
        answers: of the whole page; they are of the memory that was there.
    """

    column: gr.Column
    trace: gr.State
    before: gr.State
    text: gr.Textbox
    upload: gr.UploadButton
    examples: gr.Dataset
    num_steps: gr.Slider
    num_memory: gr.Number
    write: gr.Button
    write_on: gr.Button
    stop: gr.Button
    load: gr.UploadButton
    save: gr.Button
    file: gr.DownloadButton
    status: gr.HTML
    step: gr.Slider
    view: gr.HTML
    answers: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """What `show` changes."""
        return [
            *(self.trace, self.before, self.status, self.step, self.view, self.answers),
            *(self.write, self.write_on, self.stop, self.save),
        ]

    def show(self, news: News, earlier: Trace | None = None) -> Updates:
        """Shows news.

        Args:
            news: them.
            earlier: what is in memory if they do not change it.
        """
        trace = earlier if news.trace is None else news.trace
        has_memory = news.is_done and trace is not None
        updates: Updates = {
            self.status: news.status,
            self.write: gr.update(interactive=news.is_done),
            self.stop: gr.update(interactive=not news.is_done),
            self.write_on: gr.update(interactive=has_memory),
            self.save: gr.update(interactive=has_memory),
        }
        if news.is_done:
            updates[self.before] = None
        step: dict[str, Any] = {}
        if trace is not None:
            step["interactive"] = news.is_done and trace.last > 0
        if news.trace is not None:
            last = news.trace.last
            most = last if news.is_done else news.trace.num_steps
            step |= {"maximum": max(most, 1), "value": last}
            view = drawing.view(news.trace, last)
            updates |= {self.trace: news.trace, self.view: view, self.answers: ""}
        return updates | {self.step: gr.update(**step)}

    @property
    def of_model(self) -> list[Any]:
        """What `change_model` changes."""
        return [*self.shown, self.text, self.examples, self.num_steps, self.num_memory]

    def change_model(self, model: PageModel, number: int) -> Updates:
        """Begins anew with another model.

        Args:
            model: the model.
            number: which of its texts is offered first.
        """
        texts = model.examples.texts
        return self.show(News("", is_done=True)) | {
            self.trace: None,
            self.step: gr.update(maximum=1, value=0, interactive=False),
            self.view: _EMPTY,
            self.answers: "",
            self.text: texts[number % len(texts)],
            self.examples: offer(texts),
            self.num_steps: gr.update(maximum=model.most_steps, value=model.num_write_steps),
            self.num_memory: gr.update(
                value=model.num_memory_tokens, interactive=not model.is_trained
            ),
        }


def make_examples(texts: tuple[str, ...], elem_id: str, label: str) -> gr.Dataset:
    """Texts to choose from."""
    return gr.Dataset(
        components=["textbox"],
        samples=[[text] for text in texts],
        sample_labels=[_label(text) for text in texts],
        label=label,
        elem_id=elem_id,
        type="values",
        samples_per_page=6,
    )


def offer(texts: tuple[str, ...]) -> Any:
    """Other texts to choose from."""
    labels = [_label(text) for text in texts]
    return gr.update(samples=[[text] for text in texts], sample_labels=labels)


def _label(text: str) -> str:
    """A text, or how it begins."""
    return text if len(text) <= _LONGEST_LABEL else f"{text[:_LONGEST_LABEL].rsplit(' ', 1)[0]} …"


def make_panel(first: PageModel, answers: gr.HTML, number: int) -> Panel:
    """Makes a document; the second one appears when it is asked for.

    Args:
        first: the model that is chosen first.
        answers: where answers stand.
        number: which document it is, 0 or 1.
    """
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
            examples = make_examples(texts, f"texts{name}", "Texts to try")
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
                save = gr.Button(
                    "Save memory",
                    interactive=False,
                    size="sm",
                    elem_id=f"save{name}",
                    min_width=90,
                )
                file = gr.DownloadButton(visible="hidden", elem_id=f"file{name}")
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
    trace, before = (gr.State(None, time_to_live=_DELETE_AFTER) for _ in range(2))
    return Panel(
        column=column,
        trace=trace,
        before=before,
        text=text,
        upload=upload,
        examples=examples,
        num_steps=num_steps,
        num_memory=num_memory,
        write=write,
        write_on=write_on,
        stop=stop,
        load=load,
        save=save,
        file=file,
        status=status,
        step=step,
        view=view,
        answers=answers,
    )
