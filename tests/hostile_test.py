"""Damaged and hostile files: refused in one line, at once, and never taken for sound ones.

Each case is opened with a limit of time and of memory. Sound files are among them, which must open.
The last lines of the output count what was tried.
"""

import gc
import pathlib
import resource
import signal
import traceback

import pytest
from absl.testing import absltest, parameterized

from gradmem_jax.foreign_text import LONGEST_MESSAGE
from gradmem_jax.storage.checkpoint import CheckpointError
from tests.bad_inputs import OURS, TRIED
from tests.hostile import models, runs, texts

_SECONDS, _MIB = 10, 1024  # that a case may take


class _TooSlow(BaseException):
    """A case took more than its time."""


def _stop(number, frame):
    del number, frame
    raise _TooSlow


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome(call):
    """What became of a case: "accepted", "refused", or what went wrong."""
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    peak = _peak_mib()
    try:
        call()
        found = "accepted"
    except (ValueError, CheckpointError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = any(name in where for name in OURS)
        short = 20 < len(str(error)) < 1.2 * LONGEST_MESSAGE and "\n" not in str(error)
        found = "refused" if ours and short else f"refused by {where}: {error!s:.300}"
    except _TooSlow:
        found = f"took more than {_SECONDS} s"
    except Exception as error:  # what a program would show as a traceback
        found = f"{type(error).__name__}: {error!s:.300}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = _peak_mib() - peak
    return f"{found}, {grown:.0f} MiB" if grown > _MIB else found


class HostileTest(parameterized.TestCase):
    @parameterized.named_parameters(
        (module.__name__.rpartition(".")[2], module) for module in (models, runs, texts)
    )
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_files(self, module):
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, _stop))
        folder = pathlib.Path(self.create_tempdir().full_path)
        family = module.__name__.rpartition(".")[2]
        wrong = []
        for name, call, is_sound in module.cases(folder):
            found = outcome(call)
            TRIED[f"{family} {found}" if found in ("accepted", "refused") else family] += 1
            if found != ("accepted" if is_sound else "refused"):
                wrong.append(f"{name}: {found}")
        gc.collect()  # what Orbax leaves of a failed restore complains when it goes
        self.assertEmpty(wrong, "\n".join(wrong))


if __name__ == "__main__":
    absltest.main()
