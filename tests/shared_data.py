"""Where the public data sets for tests are, which are no part of the repository."""

import os
import pathlib
import unittest


def data_dir() -> pathlib.Path:
    """Returns the folder, or skips the test that asks."""
    beside = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("GRADMEM_DATA_DIR") or beside)
    if not folder.is_dir():
        raise unittest.SkipTest(
            f"no data sets in {folder}; set GRADMEM_DATA_DIR to a folder with babi/, squad/, ..."
        )
    return folder
