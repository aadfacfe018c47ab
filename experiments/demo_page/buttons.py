"""What happens when something in a document of the page is pressed."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

from experiments.demo_page import drawing
from experiments.demo_page.panel import Panel
from experiments.demo_page.toolkit import AT_ONCE, COMPUTES, QUIET, Updates, gr
from experiments.demo_page.traces import Trace
from experiments.demo_page.work import News, Work, read_text, refusal

_SECONDS_BETWEEN = 0.15  # pictures of a WRITE that runs


def when_pressed(work: Work, files: str | pathlib.Path, model: gr.Dropdown, panel: Panel) -> None:
    """Connects a document with what computes.

    Args:
        work: what computes.
        files: a folder for files to download.
        model: where the model is chosen.
        panel: the document.
    """
    when_example_is_chosen(panel.examples, panel.text)
    panel.upload.upload(read_text, panel.upload, [panel.text, panel.status], **AT_ONCE)
    _when_memory_is_made(work, model, panel)
    _when_memory_is_saved(work, files, panel)
    _when_looked_back(panel)


def when_example_is_chosen(examples: gr.Dataset, box: gr.Textbox) -> None:
    """Puts an example into a box."""

    def take(sample: list[str]) -> str:
        return sample[0]

    examples.click(take, examples, box, **AT_ONCE)


def _when_memory_is_made(work: Work, model: gr.Dropdown, panel: Panel) -> None:
    """What Write, Write on, Load memory and Stop do."""

    def wait(trace: Trace | None) -> Updates:
        waiting = News(drawing.status("Waiting for other work …"))
        return panel.show(waiting, trace) | {panel.before: trace}

    def run(news: Iterator[News], trace: Trace | None) -> Iterator[Updates]:
        last = 0.0
        for one in news:
            if one.is_done or time.monotonic() - last > _SECONDS_BETWEEN:
                yield panel.show(one, trace)
                trace = trace if one.trace is None else one.trace
                last = time.monotonic()

    def write(
        name: str, m: int | None, text: str, k: int, trace: Trace | None
    ) -> Iterator[Updates]:
        yield from run(work.write(name, m, text, k), trace)

    def write_on(
        name: str, m: int | None, text: str, k: int, trace: Trace | None
    ) -> Iterator[Updates]:
        yield from run(work.write(name, m, text, k, trace), trace)

    def load_memory(path: str, name: str, m: int | None, trace: Trace | None) -> Updates:
        return panel.show(work.load(path, name, m), trace)

    def begin_to_stop() -> Updates:
        said = drawing.status("Stopping behind the step that runs …")
        return {panel.status: said, panel.stop: gr.update(interactive=False)}

    def stop(trace: Trace | None, before: Trace | None) -> Updates:
        work.rest()
        return panel.show(stopped(trace, before), trace)

    inputs = [model, panel.num_memory, panel.text, panel.num_steps, panel.trace]
    from_file = [panel.load, model, panel.num_memory, panel.trace]
    begun = [
        event(wait, panel.trace, panel.shown, **AT_ONCE).then(make, parts, panel.shown, **COMPUTES)
        for event, make, parts in (
            (panel.write.click, write, inputs),
            (panel.write_on.click, write_on, inputs),
            (panel.load.upload, load_memory, from_file),
        )
    ]
    state = [panel.trace, panel.before]
    # Two events: what one that cancels others tells later may not arrive.
    panel.stop.click(
        begin_to_stop, None, [panel.status, panel.stop], cancels=begun, **AT_ONCE
    ).then(stop, state, panel.shown, concurrency_limit=None, **QUIET)


def stopped(trace: Trace | None, before: Trace | None) -> News:
    """What there is to show when a WRITE was stopped.

    Args:
        trace: what is in memory.
        before: what was in memory when it began.
    """
    if trace is not before:
        return News(drawing.status("Stopped."), trace, True)
    rest = "." if trace is None else "; the memory is the earlier one."
    return News(drawing.status(f"Stopped before the first step{rest}"), None, True)


def _when_memory_is_saved(work: Work, files: str | pathlib.Path, panel: Panel) -> None:
    """Makes a file when it is asked for, and has the browser take it."""

    def save(trace: Trace) -> Updates:
        try:
            return {panel.file: work.save(trace, files)}
        except Exception as error:
            return {panel.file: None, panel.status: refusal(error)}

    press = f"() => document.querySelector('#{panel.file.elem_id}').click()"
    saved = panel.save.click(save, panel.trace, [panel.file, panel.status], **QUIET)
    saved.success(None, js=press)


def _when_looked_back(panel: Panel) -> None:
    """Shows the step of the slider; what is typed beside it may be no step, or nothing."""

    def look(trace: Trace | None, step: int) -> Any:
        return gr.skip() if trace is None else drawing.view(trace, int(step))

    most = f"document.querySelector('#{panel.step.elem_id} input[type=range]').max"
    step = f"Math.trunc(Math.min(Math.max(step, 0), {most}))"
    panel.step.input(
        look,
        [panel.trace, panel.step],
        panel.view,
        trigger_mode="always_last",
        js=f"(trace, step) => [trace, {step}]",
        **AT_ONCE,
    )
    panel.step.release(None, panel.step, panel.step, js=f"(step) => {step}")
