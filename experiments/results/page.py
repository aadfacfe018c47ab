"""A report of finished runs: its Markdown and the figures beside it."""

import pathlib

from experiments.program import files
from experiments.results.finished_runs import FinishedRun, find_runs, task_name
from experiments.results.groups import by_memory_tokens, by_method, group_by
from experiments.results.report_figures import draw
from experiments.results.tables import cost_table, memory_table, score_table
from gradmem_jax.storage.writing import write_text


def _task(run: FinishedRun) -> tuple[str, str]:
    """What a run was trained on, and what it is judged by: only such runs share a table."""
    return task_name(run.config), run.metric.name


def write_report(root: pathlib.Path, out: pathlib.Path, title: str = "", only: str = "") -> str:
    """Writes `<out>.md` and its figures, and returns the Markdown.

    Args:
        root: folder that holds the runs.
        out: path without suffix.
        title: heading; "" names the root.
        only: regular expression; only runs whose name has it.

    Raises:
        ValueError: there is no finished run below the root, or `out` cannot be written.
    """
    files.output_file("out", out.with_name(f"{out.name}.md"))
    found = find_runs(root, only)
    tasks = group_by(found.runs, _task)
    parts = [f"# {title or f'Results of {root}'}"]
    chosen = f" '--only={only}'" if only else ""
    parts.append(f"Made by `python -m experiments.report --root={root} --out={out}{chosen}`.")
    names = [name for name, _ in tasks]
    for i, ((name, metric), runs) in enumerate(sorted(tasks.items()), 1):
        groups, by_memory = by_method(runs), by_memory_tokens(runs)
        heading = f"{name}, by {metric.split(',')[0]}" if names.count(name) > 1 else name
        parts += [f"## {heading}", score_table(groups), cost_table(groups)]
        if by_memory:
            parts.append(memory_table(by_memory))
        prefix = out.name if len(tasks) == 1 else f"{out.name}_{i}"
        drawn = draw(prefix, out.parent, runs)
        parts += [f"![{caption}]({file})" for file, caption in drawn.items()]
    for what, names in (
        ("not finished", found.unfinished),
        ("damaged and left out", found.damaged),
    ):
        if names:
            count = f"{len(names)} runs are" if len(names) > 1 else "1 run is"
            parts.append(f"{count} {what}: {', '.join(names)}.")
    text = "\n\n".join(parts) + "\n"
    write_text(out.parent / f"{out.name}.md", text)
    return text
