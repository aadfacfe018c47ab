"""How programs end when their input is refused."""

import io
from unittest import mock

from absl.testing import absltest, parameterized

from experiments import program
from gradmem_jax.checkpoint import restore_params
from gradmem_jax.config import require


def refuse(_):
    require(False, "size=-1 must be positive.")


def lack(_):
    restore_params("/nowhere")


def mistake(_):
    int("three")


class ProgramTest(parameterized.TestCase):
    def run_program(self, main):
        with mock.patch("sys.argv", ["program"]), mock.patch("sys.stderr", io.StringIO()):
            program.run(main)

    @parameterized.parameters((refuse, "error: size=-1 must"), (lack, "error: there are no check"))
    def test_what_we_refuse_has_no_traceback(self, main, message):
        with self.assertRaises(SystemExit) as ended:
            self.run_program(main)
        self.assertStartsWith(str(ended.exception.code), message)
        self.assertNotIn("Traceback", str(ended.exception.code))

    def test_our_own_mistakes_have_one(self):
        with self.assertRaisesRegex(ValueError, "three"):
            self.run_program(mistake)

    @parameterized.parameters((lambda _: None, None), (lambda _: 3, 3))
    def test_status(self, main, status):
        with self.assertRaises(SystemExit) as ended:
            self.run_program(main)
        self.assertEqual(ended.exception.code, status)


if __name__ == "__main__":
    absltest.main()
