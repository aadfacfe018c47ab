"""Figures whose names strangers chose: they are drawn as they are written."""

import pathlib
import warnings
from unittest import mock

from absl.testing import absltest
from matplotlib import pyplot as plt

from experiments.results import figures
from experiments.speed import figures as speed_figures
from gradmem_jax.storage.memory_file import StoredContext

NAMES = ("$x$", "$\\frac{", "\x1b[2J", "a\nb", "x" * 10**5, "", "{}%s", "\ud800")


class NamesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(plt.close, "all")

    def test_names_are_drawn_as_they_are(self):
        path = pathlib.Path(self.create_tempdir().full_path) / "figure.png"
        contexts = [StoredContext(name, 3, ((2.0, 1.0),), 0.5) for name in NAMES]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that the font does not have
            figures.written_contexts(path, contexts, [{"memory_bytes": 8}] * len(NAMES))
            figures.write_curves(path, {n[:40]: [] for n in NAMES[:2]})
        self.assertStartsWith(path.read_bytes(), b"\x89PNG")
        self.assertEmpty(plt.get_fignums())

    def test_steps_are_whole_and_axes_say_what_they_are(self):
        saved = []
        self.enterContext(mock.patch.object(figures.plt, "close", saved.append))
        folder = pathlib.Path(self.create_tempdir().full_path)
        row = {"exact_match": 1.0, "confidence_interval": (0.9, 1.0), "write_loss": 2.0}
        results = {"N = 4": {0: row, 1: row}, "N = 8": {0: row, 1: row}}
        trained = {"task": "N = 4", "num_write_steps": 1}
        figures.exact_match_by_steps(folder / "steps.png", results, trained)
        figures.learning_curves(folder / "curves.png", {"train/read_loss": {"a": [(2, 0.5)]}})
        measured = [(value, {"seconds": 0.01 * value, "temporary_mib": 20.0}) for value in (1, 2)]
        speed_figures.growth(folder / "growth.png", {"K": measured, "S": measured})
        steps, curves, growth = saved
        for figure in (steps, curves):
            self.assertTrue(all(x == int(x) for axes in figure.axes for x in axes.get_xticks()))
        first, second = steps.axes[0].containers
        self.assertGreater(first[0].get_linewidth(), second[0].get_linewidth())
        self.assertEqual(curves.axes[0].get_ylabel(), "read loss")
        self.assertEqual([axes.get_xlabel() for axes in growth.axes], ["", "", "K", "S"])
        self.assertEqual(growth.axes[0].yaxis.get_major_formatter()(0.01), "0.01")

    def test_a_figure_has_room_for_the_names_of_many_lines(self):
        saved = []
        self.enterContext(mock.patch.object(figures.plt, "close", saved.append))
        path = pathlib.Path(self.create_tempdir().full_path) / "figure.png"
        for count in (1, 12, 60):
            lines = {f"run {i}, optimizer.learning_rate={i}": {1: (0.5, 0.0)} for i in range(count)}
            figures.panels(path, {"": lines}, x_label="x", y_label="y")
        for figure in saved:
            legend = figure.legends[0].get_window_extent()
            self.assertGreaterEqual(legend.y0, 0)
            self.assertLessEqual(legend.y1, figure.bbox.height)
        self.assertEqual(saved[0].get_figheight(), 3.5)


if __name__ == "__main__":
    absltest.main()
