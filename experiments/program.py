"""How every program starts, and ends when it is given what it refuses."""

import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app

from gradmem_jax.checkpoint import CheckpointError

_OURS = tuple(pathlib.Path(__file__).parents[1] / name for name in ("experiments", "gradmem_jax"))


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a program; what its input is refused for is printed without a traceback.

    Args:
        main: gets the command line behind the flags and returns the exit status, or None for 0.
    """
    app.run(lambda arguments: without_traceback(main, arguments))


def without_traceback(
    main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]
) -> int | None:
    """Ends the process with status 1 and the message of an error that our own code raised.

    Those of other packages keep their traceback: they are mistakes of ours.
    """
    try:
        return main(arguments)
    except (ValueError, CheckpointError) as error:
        raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not any(raised_in.is_relative_to(folder) for folder in _OURS):
            raise
        sys.exit(f"error: {error}")
