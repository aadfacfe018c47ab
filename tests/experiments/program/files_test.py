"""What flags say of files to write is refused before any work."""

import os
import pathlib

from absl.testing import absltest, parameterized

from experiments.program.files import (
    check_apart,
    find_files,
    matching_files,
    output_figure,
    with_ending,
)
from tests.programs import start


class OutputsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    @parameterized.parameters("curves", "f.xyz", "f.png.gz", "png")
    def test_a_figure_has_an_ending_that_says_what_it_is(self, name):
        path = self.folder / "new" / name
        with self.assertRaisesRegex(ValueError, f"--figure={path} must end in one of .png, .pdf"):
            output_figure("figure", path)
        self.assertFalse(path.parent.exists())

    @parameterized.parameters("f.png", "f.PDF", "f.svg")
    def test_figures(self, name):
        path = self.folder / "new" / name
        self.assertEqual(output_figure("figure", path), path)
        self.assertTrue(path.parent.is_dir())

    def test_files_are_apart(self):
        text, other = (self.folder / name for name in ("a.txt", "b.txt"))
        text.touch()
        os.symlink(text, self.folder / "link")
        read = matching_files([f"{self.folder}/*.txt"])
        self.assertIn(str(text), read)
        check_apart({"out": str(other), "figure": None}, read)
        for outputs, message in (
            ({"out": str(text)}, f"--out={text} is also read from {text}; choose"),
            ({"out": str(self.folder / "link")}, f"link is also read from {text}; choose"),
            ({"out": "g.png", "figure": "./g.png"}, "--figure=./g.png is also --out; choose"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                check_apart(outputs, read)

    def test_a_folder_that_is_there_is_no_pattern(self):
        folder = self.folder / "run[1]*"
        (folder / "in").mkdir(parents=True)
        for name in ("in/b.txt", "in/a.txt", "in/[x].txt"):
            (folder / name).touch()
        names = [str(folder / "in" / name) for name in ("[x].txt", "a.txt", "b.txt")]
        self.assertEqual(find_files(f"{folder}/*/*.txt"), names)
        self.assertEqual(find_files(names[0]), names[:1])
        with self.assertRaisesRegex(ValueError, "there is no file"):
            find_files(f"{folder}/[x]")

    def test_programs_check_first(self):
        text, figure = self.folder / "a.txt", self.folder / "a.xyz"
        text.write_text("the cat")
        model, context = "--model=/none", f"--context={text}"
        for program, arguments, message in (
            ("write", (model, context, f"--out={text}"), "--out=.* is also read from"),
            ("reconstruct", (model, context, "--out=/tmp/a", f"--figure={figure}"), "must end in"),
            ("curves", (f"--root={self.folder}", f"--out={self.folder}/c"), "must end in"),
        ):
            done = start(program, *arguments)
            self.assertRegex(done.stderr, f"^error: .*{message}")
        self.assertEqual(text.read_text(), "the cat")

    @parameterized.parameters(
        ("results/alpha0.5", "results/alpha0.5.png"),
        ("results/scan", "results/scan.png"),
        ("results/scan.json", "results/scan.png"),
    )
    def test_endings_leave_other_dots(self, path, want):
        self.assertEqual(with_ending(pathlib.Path(path), ".png"), pathlib.Path(want))


if __name__ == "__main__":
    absltest.main()
