"""A page that shows memory being written, and answers questions from it.

  python -m experiments.demo
  python -m experiments.demo --model=runs/kv_quick --model=models/smollm2

It is served to this machine alone, unless --host says otherwise.
"""

import time
from collections.abc import Sequence

from absl import flags

from experiments.demo_page.models import Models
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


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    console.set_up_logging()
    from experiments.demo_page.page import serve  # says what to install if Gradio is missing
    from experiments.demo_page.work import Work

    work = Work(Models(_MODEL.value or ()))
    with serve(work, _HOST.value, _PORT.value) as address:
        say(f"open {address} in a browser; Ctrl-C ends this")
        work.warm_up()
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    startup.run(main)
