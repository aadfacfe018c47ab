"""Figures whose names strangers chose: they are drawn as they are written."""

import pathlib
import warnings

from absl.testing import absltest
from matplotlib import pyplot as plt

from experiments.results import figures
from gradmem_jax.storage.memory_file import StoredContext

NAMES = ("$x$", "$\\frac{", "\x1b[2J", "a\nb", "x" * 10**5, "", "{}%s", "\ud800")


class NamesTest(absltest.TestCase):
    def test_names_are_drawn_as_they_are(self):
        path = pathlib.Path(self.create_tempdir().full_path) / "figure.png"
        contexts = [StoredContext(name, 3, ((2.0, 1.0),), 0.5) for name in NAMES]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that the font does not have
            figures.written_contexts(path, contexts, [{"memory_bytes": 8}] * len(NAMES))
            figures.write_curves(path, {n[:40]: [] for n in NAMES[:2]})
        self.assertStartsWith(path.read_bytes(), b"\x89PNG")
        self.assertEmpty(plt.get_fignums())


if __name__ == "__main__":
    absltest.main()
