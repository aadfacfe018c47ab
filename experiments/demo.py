"""A page that shows memory being written, and answers questions from it.

  python -m experiments.demo
  python -m experiments.demo --model=runs/kv_quick --model=models/smollm2
  python -m experiments.demo --space=space --model=runs/kv_model

It is served to this machine alone, unless --host says otherwise. With --space nothing is served: a
folder is written that is the page as a Space of Hugging Face.
"""

import pathlib
import signal
import time
from collections.abc import Sequence

from absl import flags

from experiments.demo_page.models import Models, model_paths
from experiments.demo_page.space import write_space
from experiments.program import console, startup
from experiments.program.console import say

_MODEL = flags.DEFINE_multi_string(
    "model",
    None,
    "A run, an exported run, or a pretrained language model (files, or org/name@revision); may be "
    "repeated. Default: all of experiments/models/.",
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to serve at; 0.0.0.0 is every one.")
_PORT = flags.DEFINE_integer(
    "port", 7860, "Port; 0 takes the first free one from 7860 on.", 0, 65535
)
_SPACE = flags.DEFINE_string("space", None, "Write a Space with these models to this folder.")
_LICENSE = flags.DEFINE_string("license", "other", "Of a Space: what the hub calls its licence.")


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # files of the page go with it
    from experiments.demo_page.server import serve  # says what to install if Gradio is missing
    from experiments.demo_page.work import Work

    if _SPACE.value:
        write_space(pathlib.Path(_SPACE.value), model_paths(_MODEL.value or ()), _LICENSE.value)
        say(f"wrote {_SPACE.value}; try it with: python {_SPACE.value}/app.py")
        return
    work = Work(Models(_MODEL.value or ()))
    with serve(work, _HOST.value, _PORT.value) as address:
        say(f"open {address} in a browser; Ctrl-C ends this")
        work.warm_up()
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    startup.run(main)
