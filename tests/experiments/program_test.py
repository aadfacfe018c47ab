"""How programs end when their input is refused."""

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
    @parameterized.parameters((refuse, "error: size=-1 must"), (lack, "error: there are no check"))
    def test_what_we_refuse_has_no_traceback(self, main, message):
        with self.assertRaises(SystemExit) as ended:
            program.without_traceback(main, [])
        self.assertStartsWith(str(ended.exception.code), message)
        self.assertNotIn("Traceback", str(ended.exception.code))

    def test_our_own_mistakes_have_one(self):
        with self.assertRaisesRegex(ValueError, "three"):
            program.without_traceback(mistake, [])

    @parameterized.parameters(None, 3)
    def test_status(self, status):
        self.assertEqual(program.without_traceback(lambda _: status, []), status)


if __name__ == "__main__":
    absltest.main()
