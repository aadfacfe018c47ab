"""How programs end when their input is refused."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
from unittest import mock

from absl import flags
from absl.testing import absltest, parameterized
from ml_collections import config_flags

from experiments.configs import default
from experiments.program import startup
from gradmem_jax.checks import require
from gradmem_jax.data.tasks import TASKS
from gradmem_jax.storage.checkpoint import restore_params
from tests.programs import ROOT, start

CONFIG = ROOT / "experiments" / "configs" / "kv_quick.py"


def refuse(_):
    require(False, "size=-1 must be positive.")


def lack(_):
    restore_params("/nowhere")


def mistake(_):
    int("three")


class ProgramTest(parameterized.TestCase):
    @parameterized.parameters((refuse, "error: size=-1 must"), (lack, "error: there are no check"))
    def test_what_we_refuse_has_no_traceback(self, main, message):
        with self.assertRaises(SystemExit) as ended:
            startup.without_traceback(main, [])
        self.assertStartsWith(str(ended.exception.code), message)
        self.assertNotIn("Traceback", str(ended.exception.code))

    @parameterized.parameters("gs://bucket/run", "s3://bucket", "gs:/bucket", "https://host/a.txt")
    def test_addresses_are_no_folders(self, text):
        with mock.patch.object(flags, "FLAGS", flags.FlagValues()):
            flags.DEFINE_list("context", [], "A", flag_values=flags.FLAGS)
            with self.assertRaises(SystemExit) as ended:
                startup.parse_flags(["program", f"--context=a,{text}"])
        self.assertRegex(str(ended.exception.code), f"error: --context='{text}' is an address, ")

    @parameterized.parameters(RuntimeError("no cuda"), AssertionError())
    def test_devices_that_are_not_there(self, error):
        def backends(_):
            raise error

        with self.assertRaises(SystemExit) as ended:
            startup.without_traceback(backends, [])
        self.assertRegex(str(ended.exception.code), "error: JAX finds no device of .* Leave JAX_PL")

    def test_our_own_mistakes_have_one(self):
        with self.assertRaisesRegex(ValueError, "three"):
            startup.without_traceback(mistake, [])

    @parameterized.parameters(
        (OSError(28, "No space left on device", "/a/b"), "error: No space left on device: /a/b. "),
        (PermissionError(13, "Permission denied", "x\x1b\ny"), r"error: .* x\\u001b\\ny\. "),
    )
    def test_what_the_system_refuses_is_a_line(self, error, message):
        with self.assertRaises(SystemExit) as ended:
            startup.without_traceback(mock.Mock(side_effect=error), [])
        self.assertRegex(str(ended.exception.code), message)

    def test_an_output_that_is_full(self):
        command = (
            "from experiments.program import console, startup\n"
            "def main(_): console.say('a')\n"
            "startup.without_traceback(main, [])"
        )
        with open("/dev/full", "w") as full:
            words = [sys.executable, "-c", command]
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 1)
        want = r"^error: No space left on device: standard output\. .*\n$"
        self.assertRegex(done.stderr, want)

    def test_a_reader_that_has_gone_and_ctrl_c(self):
        command = (
            "import os, sys; from experiments.program import startup\n"
            "def main(_):\n"
            "    if os.environ['END'] == 'ctrl_c': raise KeyboardInterrupt\n"
            "    for i in range(100_000): print(i)\n"
            "startup.without_traceback(main, [])"
        )
        for end, status in (("ctrl_c", 130), ("closed", 1)):
            with subprocess.Popen(
                [sys.executable, "-c", command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"END": end},
            ) as process:
                process.stdout.close()
                self.assertEqual(process.stderr.read(), b"")
                self.assertEqual(process.wait(), status)

    def test_a_program_that_fails_ends_though_a_thread_hangs(self):
        code = (
            "import threading; from experiments.program import startup\n"
            "def main(_):\n"
            "    threading.Thread(target=threading.Event().wait).start()\n"
            "    print('said')\n"
            "    return 3\n"
            "startup.run(main)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
        self.assertEqual((done.returncode, done.stdout), (3, b"said\n"), done.stderr)

    @parameterized.parameters(
        (refuse, 1, "error: size=-1 must be positive.\n"),
        (lambda _: sys.exit("no\x1b[2J"), 1, r"no\\u001b\[2J\n"),
        (mistake, 1, r"Traceback .*ValueError: invalid literal.*"),
        (lambda _: sys.exit(7), 7, ""),
    )
    def test_how_a_program_fails(self, main, status, said):
        with (
            mock.patch.object(startup.app, "run", lambda main, **_: sys.exit(main(["program"]))),
            mock.patch.object(os, "_exit") as ended,
            contextlib.redirect_stderr(io.StringIO()) as errors,
        ):
            startup.run(main)
        ended.assert_called_once_with(status)
        self.assertRegex(errors.getvalue(), f"(?s)^{said}$")

    def test_a_program_that_succeeds_ends_as_usual(self):
        code = (
            "import atexit; from experiments.program import startup\n"
            "atexit.register(print, 'at exit'); startup.run(lambda _: 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, "at exit\n"), done.stderr)

    @parameterized.parameters(
        ("model.num_write_step", "no field 'num_write_step'; .*mean \"num_write_steps\""),
        ("modle.num_write_steps", "no field 'modle'; .*mean \"model\""),
        ("seed.x", "no field 'seed.x'; "),
        ("foo", "no field 'foo'; experiments/configs/default.py explains those it has.$"),
    )
    def test_unknown_fields(self, field, message):
        words = ["train", f"--config.{field}=1"]
        with self.assertRaises(SystemExit) as ended, startup.known_fields():
            config_flags.DEFINE_config_file(
                "config", str(CONFIG), flag_values=flags.FlagValues(), sys_argv=words
            )
        self.assertRegex(str(ended.exception.code), "^error: .*" + message)

    @parameterized.parameters(
        ("train", ("--config=experiments/configs/kv_paper.py:n5_k2",), "no gradmem row N=5"),
        ("train", ("--config=nowhere.py",), "nowhere.py is no file in /.*; give .*kv_quick.py"),
        ("train", ("--config.data.num_pair=3",), "no field 'num_pair'.*mean \"num_pairs\""),
        ("train", ("--workdir=",), "--workdir= is empty"),
        ("evaluate", ("--num_write_steps", "0", "1", "2"), "'1' '2' belongs to no flag. Write lis"),
    )
    def test_wrong_flags_are_refused_in_a_few_words(self, name, arguments, message):
        done = start(name, "--workdir=nowhere", *arguments)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr.replace("\n", " "), "^error: .*" + message)
        self.assertNotIn("Traceback", done.stderr)

    @parameterized.parameters(
        ("--config=experiments", "error: --config=experiments is a folder; give "),
        ("--config=README.md:n8", "error: --config=README.md is no Python file; give "),
        ("--config.optimizer=muon", "as in --config.optimizer.name=muon"),
        ("--config.stop_at_exact_match=None", "can set a field to None, see .*default.py"),
    )
    def test_wrong_configs(self, word, message):
        values, words = flags.FlagValues(), ["train", word]
        if "." in word.partition("=")[0]:
            config_flags.DEFINE_config_file(
                "config", str(CONFIG), flag_values=values, sys_argv=words
            )
        else:
            flags.DEFINE_string("config", "", "", flag_values=values)
        with (
            mock.patch.object(flags, "FLAGS", values),
            self.assertRaises(SystemExit) as ended,
        ):
            startup.parse_flags(words)
        self.assertRegex(str(ended.exception.code), message)

    @parameterized.parameters(
        ("def get_config():\n pass", "get_config.. returned NoneType; it must return"),
        ("def get_config(): return 3", "get_config.. returned int; it must return"),
        ("x = 1", "--config has no get_config..; define it there"),
        ("x = 1\nimport nowhere", "ModuleNotFoundError: .*nowhere.* .*file.py, line 2"),
        (
            "def get_config():\n return 1 / 0",
            "ZeroDivisionError: division by zero .*file.py, line 2",
        ),
    )
    def test_files_that_give_no_config(self, text, message):
        path = pathlib.Path(self.create_tempdir().full_path) / "file.py"
        path.write_text(text)
        sys.modules.pop("config_config", None)  # what --config read before
        values, words = flags.FlagValues(), ["train", f"--config={path}"]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
        with mock.patch.object(flags, "FLAGS", values), self.assertRaises(SystemExit) as ended:
            startup.parse_flags(words)
        self.assertRegex(str(ended.exception.code), f"^error: .*{message}")

    def test_our_configs_are_found_from_anywhere(self):
        for words in (["--config=experiments/configs/kv_quick.py:rmt"], ["--config", str(CONFIG)]):
            values, words = flags.FlagValues(), ["train", *words]
            config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
            folder = contextlib.chdir(self.create_tempdir().full_path)
            with mock.patch.object(flags, "FLAGS", values), folder:
                startup.parse_flags(words)
            self.assertEqual(values["config"].value.num_steps, 800)

    def test_only_of_config_a_file_of_ours_is_found_from_anywhere(self):
        ours, elsewhere = "experiments/configs/kv_quick.py", self.create_tempdir().full_path
        words = ["train", "--config", f"{ours}:rmt", f"--config={ours}", "--out", ours]
        with contextlib.chdir(elsewhere):
            found = startup._with_found_config([*words, f"--out={ours}", ours])
        self.assertEqual(found[2:4], [f"{CONFIG}:rmt", f"--config={CONFIG}"])
        self.assertEqual(found[:2] + found[4:], [*words[:2], *words[4:], f"--out={ours}", ours])

    def test_modules_of_ones_own(self):
        folder = self.create_tempdir().full_path
        pathlib.Path(folder, "my_tasks.py").write_text(
            "from gradmem_jax.data.tasks import TASKS\nTASKS['mine'] = TASKS['babi']\n"
        )
        config = pathlib.Path(folder, "my_config.py")
        config.write_text(
            "from experiments.configs import default\n"
            "def get_config(): return default.get_config(task='mine')\n"
        )
        values, words = flags.FlagValues(), ["train", f"--config={config}"]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
        self.addCleanup(TASKS.pop, "mine", None)
        with self.assertRaisesRegex(ValueError, "task='mine' is not known; .* GRADMEM_MODULES"):
            default.get_config(task="mine")
        with (
            mock.patch.object(sys, "path", [folder, *sys.path]),
            mock.patch.dict(os.environ, {"GRADMEM_MODULES": "my_tasks, "}),
            mock.patch.object(flags, "FLAGS", values),
        ):
            startup.parse_flags(words)
        self.assertEqual(values["config"].value.task, "mine")

    @parameterized.parameters("nowhere.at_all", ".x", "json, .x")
    def test_modules_that_are_none(self, names):
        with (
            mock.patch.dict(os.environ, {"GRADMEM_MODULES": names}),
            self.assertRaises(SystemExit) as ended,
        ):
            startup.parse_flags(["train"])
        self.assertRegex(str(ended.exception.code), "^error: GRADMEM_MODULES=[.n].*Name modules ")

    @parameterized.parameters(None, 3)
    def test_status(self, status):
        self.assertEqual(startup.without_traceback(lambda _: status, []), status)


if __name__ == "__main__":
    absltest.main()
