"""The page itself, in Gradio: what is where, its questions, and its list of models."""

import pathlib
from typing import Any

from experiments.demo_page import drawing
from experiments.demo_page.buttons import when_example_is_chosen, when_pressed
from experiments.demo_page.models import PageModel
from experiments.demo_page.panel import (
    Panel,
    make_examples,
    make_panel,
    offer,
)
from experiments.demo_page.toolkit import AT_ONCE, COMPUTES, Updates, gr
from experiments.demo_page.work import Work, refusal

_TITLE = (
    '<div class="gm-title"><h1>GradMem</h1><p>A frozen language model writes a text into a few '
    "vectors by gradient descent, and answers from them alone.</p></div>"
)


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
            answers = gr.HTML(elem_id="answers", render=False)
            panels = [make_panel(first, answers, i) for i in range(2)]
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
            questions = make_examples(first.examples.questions, "questions", "Questions")
            answers.render()

        for panel in panels:
            when_pressed(work, files, model, panel)
        _when_model_changes(work, model, about, panels, question, questions)
        when_example_is_chosen(questions, question)
        second = panels[1].column

        def pair(is_pair: bool) -> Updates:
            return {second: gr.update(visible=is_pair), answers: ""}

        is_pair.change(pair, is_pair, [second, answers], **AT_ONCE)
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
            **COMPUTES | {"show_progress": "minimal"},
        )
    return page


def _about(model: PageModel) -> str:
    return f'<p class="gm-quiet">{drawing.escape(model.describe())}</p>'


def _when_model_changes(
    work: Work,
    model: gr.Dropdown,
    about: gr.HTML,
    panels: list[Panel],
    question: gr.Textbox,
    questions: gr.Dataset,
) -> None:
    """Opens another model, and offers what it can be tried with."""
    outputs = {about, question, questions}.union(*(panel.of_model for panel in panels))

    def wait(name: str) -> str:
        return f'<p class="gm-quiet">Opening {drawing.escape(name)} …</p>'

    def change(name: str) -> Updates:
        try:
            found = work.model(name)
        except Exception as error:
            return {about: refusal(error)}
        asked = found.examples.questions
        updates: Updates = {about: _about(found), question: asked[0], questions: offer(asked)}
        for i, panel in enumerate(panels):
            updates |= panel.change_model(found, i)
        return updates

    model.input(wait, model, about, **AT_ONCE).then(change, model, outputs, **COMPUTES)
