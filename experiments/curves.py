r"""Draws the learning curves of runs, finished or not, from their TensorBoard events.

python -m experiments.curves --root=runs/smol --out=curves.png \
    --scalars=train/read_loss,evaluation/token_accuracy
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import figures, program, reporting
from experiments.events import read_scalars
from experiments.outputs import output_figure
from experiments.reporting import log
from experiments.runs import ONLY, ROOT, name_pattern
from gradmem_jax.checks import require

flags.declare_key_flag(ROOT.name)
flags.declare_key_flag(ONLY.name)
_OUT = flags.DEFINE_string("out", None, "PNG, PDF or SVG to write (required).", required=True)
_SCALARS = flags.DEFINE_list(
    "scalars", ["train/read_loss", "evaluation/token_accuracy"], "What to draw, a panel each."
)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    reporting.set_up_logging()
    out = output_figure("out", _OUT.value)
    root = pathlib.Path(ROOT.value)
    folders = sorted(path.parent for path in root.glob("**/tensorboard"))
    names = {str(folder.relative_to(root)): folder for folder in folders}
    pattern = name_pattern(ONLY.value)
    runs = {name: read_scalars(folder) for name, folder in names.items() if pattern.search(name)}
    require(bool(runs), f"--root={root} has no run with TensorBoard events that fits --only.")
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
    program.run(main)
