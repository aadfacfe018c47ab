"""What programs print: lines of one format, on a standard output that may be closed."""

import logging
import sys

from absl import flags
from absl import logging as absl_logging

log = logging.getLogger("experiments")


class _StandardOutput(logging.StreamHandler):
    """Standard output, which may be closed: a program goes on though nobody reads it any more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Says that a record could not be written, unless its reader has gone."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


def set_up_logging() -> None:
    """Sends our lines to standard output; of libraries only warnings, unless --verbosity is set."""
    handler = _StandardOutput(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
