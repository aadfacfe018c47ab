"""What a memory's notes may have opened: nothing outside of its folder, unless the user says so."""

import os
import pathlib
import shlex

from absl.testing import absltest, parameterized

from experiments.answers.reopen_model import reopen_model


class ReopenTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)
        for name in ("here/inside", "elsewhere"):
            (self.root / name).mkdir(parents=True)
        self.memory = str(self.root / "here" / "memory.safetensors")

    def refused(self, notes, *given, typed=()):
        with self.assertRaises(ValueError) as refused:
            reopen_model(self.memory, notes, *given, typed=typed)
        return str(refused.exception)

    def test_a_model_elsewhere_is_not_opened_unasked(self):
        link = self.root / "here" / "link"
        link.symlink_to(self.root / "elsewhere")
        for place in (self.root / "elsewhere", link, self.root / "here/inside/../../elsewhere"):
            said = self.refused({"model": str(place), "options": {}})
            self.assertRegex(
                said, r"names a model outside of its folder.* If you trust what it names: "
            )
            command = shlex.split(said.partition("it names: ")[2])
            want = ["python", "-m", "experiments.ask", f"--memory={self.memory}"]
            self.assertEqual(command, [*want, f"--model={place}"])

    def test_what_the_user_names_or_lies_beside_is_looked_at(self):
        elsewhere = str(self.root / "elsewhere")
        for notes, given in (
            ({"model": elsewhere, "options": {}}, elsewhere),
            ({"model": str(self.root / "here/inside"), "options": {}}, None),
        ):
            self.assertIn("config.json", self.refused(notes, given))

    def test_a_tokenizer_elsewhere_is_not_opened_unasked(self):
        elsewhere = str(self.root / "elsewhere")
        tokenizer = str(self.root / "tokenizer.json")
        options = {"tokenizer_path": tokenizer}
        said = self.refused({"model": elsewhere, "options": options}, typed=["what?", "--m"])
        flags = f"--model={elsewhere} --tokenizer={tokenizer}"
        self.assertEndsWith(said, f"python -m experiments.ask 'what?' --m {flags}")
        said = self.refused({"model": elsewhere, "options": options}, elsewhere)
        self.assertRegex(said, "names a tokenizer outside .* --tokenizer=")
        self.assertNotIn("--model=", said)
        for path, given in ((tokenizer, tokenizer), (f"{elsewhere}/tokenizer.json", None)):
            notes = {"model": elsewhere, "options": {"tokenizer_path": path}}
            self.assertIn("config.json", self.refused(notes, elsewhere, given))

    def test_a_command_to_copy_does_nothing_else(self):
        for path in ("/a;rm -rf ~", "/$(x)", "/`x`", "/a'b", "/a b\n c", "/\x1b[2J", "/a\0b"):
            said = self.refused({"model": path, "options": {}})
            self.assertTrue(said.isprintable())
            self.assertLen(shlex.split(said.partition("it names: ")[2]), 5)

    @parameterized.parameters(
        ({"model": 5},), ({"model": []},), ({"model": None},), ({"options": []},), ({},)
    )
    def test_notes_of_wrong_types(self, notes):
        self.assertRegex(self.refused(notes), "of type|does not say where its model is")

    @parameterized.parameters(
        *({"num_memory_tokens": x} for x in (0, -1, 1.5, "8", True, None, 10**30, [])),
        *({"num_write_steps": x} for x in (-1, "8", 10**30, None)),
        *({"write_learning_rate": x} for x in (-1.0, "1", 10**400, float("nan"), [])),
        *({"write_optimizer": x} for x in ("lion", 1, None, {})),
        *({"tokenizer_path": x} for x in (1, [], True)),
        *({"scan_layers": x} for x in (1, "yes", None)),
        {"payload": 1},
    )
    def test_options_of_wrong_types(self, **options):
        notes = {"model": str(self.root / "here/inside"), "options": options}
        message = "must be|choose one of|takes no such options"
        self.assertRegex(self.refused(notes), message)

    @parameterized.parameters((1,), ([],), (None,), ({},))
    def test_a_checkpoint_is_named_by_a_text(self, name):
        os.mkdir(self.root / "here/inside/checkpoints")
        notes = {"model": str(self.root / "here/inside"), "options": {"checkpoint_name": name}}
        self.assertRegex(self.refused(notes), "checkpoint_name=.* must be of type str")


if __name__ == "__main__":
    absltest.main()
