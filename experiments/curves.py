r"""Draws the learning curves of runs, finished or not, from their TensorBoard events.

Example:
  python -m experiments.curves --root=runs/smol --out=curves.png \
      --scalars=train/read_loss,evaluation/token_accuracy
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments.program import console, startup
from experiments.program.console import log
from experiments.program.files import output_figure
from experiments.results import figures
from experiments.results.finished_runs import name_pattern
from experiments.run.tensorboard_writer import read_scalars
from experiments.run.workdir import EXPORTED, is_run
from gradmem_jax.checks import require
from gradmem_jax.foreign_text import one_line

_ROOT = flags.DEFINE_string("root", None, "Folder of the runs' folders (required).", required=True)
_ONLY = flags.DEFINE_string("only", "", "Regular expression; only runs whose name has it.")
_OUT = flags.DEFINE_string("out", None, "PNG, PDF or SVG to write (required).", required=True)
_SCALARS = flags.DEFINE_list(
    "scalars", ["train/read_loss", "evaluation/token_accuracy"], "What to draw, a panel each."
)


def _without_events(root: pathlib.Path) -> list[str]:
    """Names of the runs that kept their scalars elsewhere."""
    folders = (path.parent for path in root.glob("**/config.json"))
    return sorted(
        one_line(str(folder.relative_to(root)))
        for folder in folders
        if is_run(folder)
        and not (folder / EXPORTED).exists()
        and not (folder / "tensorboard").exists()
    )


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    out = output_figure("out", _OUT.value)
    root = pathlib.Path(_ROOT.value)
    folders = sorted(path.parent for path in root.glob("**/tensorboard"))
    names = {str(folder.relative_to(root)): folder for folder in folders}
    pattern = name_pattern(_ONLY.value)
    runs = {name: read_scalars(folder) for name, folder in names.items() if pattern.search(name)}
    others = [name for name in _without_events(root) if pattern.search(name)]
    if others:
        log.info("without TensorBoard events, by their log_to: %s", ", ".join(others))
    require(
        bool(runs),
        f"--root={root} has no run with TensorBoard events that fits --only"
        f"{'; those of other writers are drawn by them' if others else ''}.",
    )
    known = sorted({tag for scalars in runs.values() for tag in scalars})
    for tag in _SCALARS.value:
        there = ", ".join(known) or "none yet"
        require(tag in known, f"--scalars: {tag!r} is in no run; there are {there}.")
    panels = {
        tag: {name: scalars[tag] for name, scalars in runs.items() if tag in scalars}
        for tag in _SCALARS.value
    }
    figures.learning_curves(out, panels)
    log.info("drew %s", out)


if __name__ == "__main__":
    startup.run(main)
