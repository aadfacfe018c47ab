"""run.json: of which commit a start was, and what becomes of a file that is damaged."""

import json
import pathlib
import shutil
import subprocess
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.run import start_record

_GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")


class StartRecordTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    @parameterized.parameters('{"starts": "abc"}', "[1]", "3", "{}", "{")
    def test_a_file_that_is_damaged_is_begun_anew(self, text):
        path = self.folder / "run.json"
        path.write_text(text)
        with self.assertLogs("experiments", "WARNING") as logs:
            start_record.record_start(self.folder, 4, ["1 cpu"])
        self.assertIn(str(path), logs.output[0])
        start_record.record_start(self.folder, 8, ["1 cpu"])
        starts = json.loads(path.read_text())["starts"]
        self.assertEqual([start["first_step"] for start in starts], [4, 8])

    def test_the_commit_is_that_of_a_clone_not_of_what_it_is_installed_below(self):
        if shutil.which("git") is None:
            self.skipTest("there is no git")
        for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
            subprocess.run([*_GIT, *words], cwd=self.folder, check=True)
        installed = self.folder / "site-packages"
        installed.mkdir()
        for root, length in ((self.folder, 40), (installed, None)):
            with mock.patch.object(start_record, "_ROOT", root):
                commit = start_record.git_commit()
            self.assertEqual(commit and len(commit), length)


if __name__ == "__main__":
    absltest.main()
