r"""Measures a GPU or TPU that is there for some minutes only, the most valuable first.

How far the device is from the official numbers; training steps of the paper's KV model and of one
of GPT-2's size; attention by all implementations; and a training run for the rest of the time. Each
result is written as it comes.

  python -m experiments.measure_device --out=runs/h200 --minutes=9

With a checkout of the official PyTorch code its steps are measured beside ours:

  python -m experiments.measure_device --out=runs/h200 --reference=gradmem \
      --reference_python=python3 --reference_device=cuda
"""

import shutil
import sys
from collections.abc import Sequence

from absl import flags

from experiments.program import console, files, startup
from experiments.program.console import log
from experiments.speed import device_parts
from experiments.speed.reference import Reference

_OUT = flags.DEFINE_string("out", None, "Folder of the results (required).", required=True)
_MINUTES = flags.DEFINE_float("minutes", 9.0, "That all may take.", lower_bound=0.1)
_REFERENCE = flags.DEFINE_string("reference", "", "Checkout of the official PyTorch code.")
_REFERENCE_PYTHON = flags.DEFINE_string(
    "reference_python", sys.executable, "Python that has torch and transformers."
)
_REFERENCE_DEVICE = flags.DEFINE_string("reference_device", "cuda", "Its device: cpu or cuda.")
_SIZE = flags.DEFINE_enum("size", "full", ["full", "tiny"], "How large the work is.")


def main(_: Sequence[str]) -> int:
    """Runs the program."""
    console.set_up_logging()
    out = files.output_folder("out", _OUT.value)
    reference = None
    if _REFERENCE.value:
        python = shutil.which(_REFERENCE_PYTHON.value) or _REFERENCE_PYTHON.value
        reference = Reference(_REFERENCE.value, python, _REFERENCE_DEVICE.value)
        reference.check()
    sizes = {"full": device_parts.FULL, "tiny": device_parts.TINY}[_SIZE.value]
    parts = device_parts.parts(sizes, reference, out)
    found = device_parts.measure_all(parts, out, 60 * _MINUTES.value)
    log.info("wrote %s\n%s", out / "results.json", device_parts.table(found))
    return int(all("error" in row for row in found))


if __name__ == "__main__":
    startup.run(main)
