"""Tables and figures of all finished runs below a folder.

Writes Markdown, to standard output too, and figures next to it. Example:

  python -m experiments.report --root=runs/kv_paper --out=runs/kv_paper/report
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments.program import console, startup
from experiments.results.page import write_report

_ROOT = flags.DEFINE_string("root", None, "Folder of the runs' folders (required).", required=True)
_ONLY = flags.DEFINE_string("only", "", "Regular expression; only runs whose name has it.")
_OUT = flags.DEFINE_string(
    "out", None, "Path of the report without suffix (required).", required=True
)
_TITLE = flags.DEFINE_string("title", "", "Heading of the report; default: names --root.")


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    out = pathlib.Path(_OUT.value.removesuffix(".md"))
    text = write_report(pathlib.Path(_ROOT.value), out, _TITLE.value, _ONLY.value)
    console.say(text.rstrip("\n"))


if __name__ == "__main__":
    startup.run(main)
