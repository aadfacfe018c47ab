"""Files that programs write: what flags say of them is checked before any work."""

import glob
import os
import pathlib
from collections.abc import Iterable, Mapping

from experiments import reporting
from gradmem_jax.checks import require

FIGURES = (".png", ".pdf", ".svg")


def output_figure(flag: str, path: str | pathlib.Path) -> pathlib.Path:
    """Makes the folder of a figure that a flag names and sees that the figure can be written.

    Raises:
        ValueError: it cannot, or its ending is not that of a figure.
    """
    path = pathlib.Path(path)
    require(
        path.suffix.lower() in FIGURES,
        f"--{flag}={path} must end in one of {', '.join(FIGURES)}; name it {path}.png.",
    )
    return reporting.output_file(flag, path)


def matching_files(patterns: Iterable[str]) -> list[str]:
    """The files that paths and patterns such as `docs/*.txt` name."""
    return [path for text in patterns for path in (text, *glob.glob(text, recursive=True))]


def check_apart(outputs: Mapping[str, str | None], inputs: Iterable[str]) -> None:
    """Refuses to write a file that is read, or two outputs into one file.

    Args:
        outputs: paths by flag; None where a flag is not given.
        inputs: paths of what is read.
    """
    taken = {os.path.realpath(path): f"read from {path}" for path in inputs}
    for flag, path in outputs.items():
        if path is not None:
            where = os.path.realpath(path)
            require(
                where not in taken,
                f"--{flag}={path} is also {taken.get(where)}; choose another file.",
            )
            taken[where] = f"--{flag}"
