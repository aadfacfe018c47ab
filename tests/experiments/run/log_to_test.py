"""Scalars of a run: whoever keeps them, each step once, and none of them ends training."""

import contextlib
import json
import os
import pathlib
import struct
import sys
import time
import types
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.run import log_to, whole_run
from experiments.run.progress import Progress
from experiments.run.scalar_writer import RunToWrite
from experiments.run.tensorboard_writer import read_scalars
from experiments.run.wandb_writer import WandbWriter
from tests.experiments.tiny_run import tiny_plan

METRICS = {"loss": 2.0, "exact_match": 0.5, "token_accuracy": 0.5, "write_loss": 1.0}


def records(path):
    """The records of a file of wandb, one block of a LevelDB log behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place = path.read_bytes(), 7
    while place + 7 <= len(content):
        (length,) = struct.unpack_from("<H", content, place + 4)
        yield Record.FromString(content[place + 7 : place + 7 + length])
        place += 7 + length


def whole_file(path):
    """The same of a run that has ended, whose last record may come a moment later."""
    for _ in range(500):
        found = list(records(path))
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.01)
    raise AssertionError(f"{path} has no end")


class LogToTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    @parameterized.parameters(
        (("nothing",), "log_to='nothing' is not known; .*'tensorboard', 'wandb'.* GRADMEM_MODULES"),
        (("tensorboard,wandb",), r"Several are a tuple: --config.log_to=.\('tensorboard', 'wandb'"),
        (("tensorboard", "tensorboard"), "has 'tensorboard' twice; name it once"),
        (("wandb",), r"'wandb', which is not installed: pip install -e '.\[wandb\]', or leave it"),
    )
    def test_refused_before_anything_is_done(self, names, message):
        plan = tiny_plan(log_to=names)
        with (
            mock.patch.dict(sys.modules, {"wandb": None}),
            self.assertRaisesRegex(ValueError, message) as refused,
        ):
            whole_run.train(plan, self.folder / "run")
        self.assertNotIn("\n", str(refused.exception))
        self.assertFalse((self.folder / "run").exists())
        folder = types.ModuleType("wandb")  # where there is one in the folder of the program
        with mock.patch.dict(sys.modules, {"wandb": folder}), self.assertRaises(ValueError):
            log_to.check_writers(names)

    def test_a_writer_of_ones_own(self):
        told, closed = [], []

        class Mine:
            def __init__(self, run):
                told.append((run.workdir, run.first_step, run.fields["log_to"]))

            def write(self, step, values):
                told.append((step, dict(values)))

            def close(self):
                closed.append(True)

        with mock.patch.dict(log_to.WRITERS, {"mine": log_to.Writer(Mine)}):
            plan = tiny_plan(log_to=("mine", "tensorboard"))
            log_to.check_writers(plan.log_to)
            with Progress(self.folder, plan, first_step=2) as progress:
                progress.scalars("evaluation", 4, {"loss": 0.5})
            want = [(self.folder, 2, ["mine", "tensorboard"]), (4, {"evaluation/loss": 0.5})]
            self.assertEqual(told, want)
            self.assertEqual(read_scalars(self.folder)["evaluation/loss"], [(4, 0.5)])
            with self.assertLogs("experiments", "INFO") as logs:
                Progress(self.folder, tiny_plan(log_to=("mine",)), first_step=4).__exit__()
        self.assertRegex(logs.output[0], "no TensorBoard events .*curves cannot draw this")
        self.assertLen(closed, 2)


class WandbTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        places = dict.fromkeys(("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"))
        ours = {n: x for n, x in os.environ.items() if not n.startswith("WANDB_")}
        ours |= {name: str(self.folder / "home") for name in places} | {"WANDB_MODE": "offline"}
        self.enter_context(mock.patch.dict(os.environ, ours, clear=True))

    def test_a_run_that_goes_on_offline(self):
        try:
            import wandb  # noqa: F401
        except ImportError:
            self.skipTest("wandb is not installed")
        workdir = self.folder / "run"
        workdir.mkdir()
        plan = tiny_plan(log_to=("wandb",))
        with Progress(workdir, plan, first_step=0) as progress:
            for step in (2, 4, 6):
                progress.scalars("train", step, {"loss": 1 / step})
        (first,) = workdir.glob("wandb/offline-run-*")
        first.rename(workdir / "wandb" / "first")  # names go by the second
        with Progress(workdir, plan, first_step=4, evaluation_due=True) as progress:
            for step in (6, 8):  # the first was told before, and is the same
                progress.scalars("train", step, {"loss": 1 / step})
            progress.scalars("evaluation", 8, {"loss": float("nan")})
        known = json.loads((workdir / "wandb_run.json").read_text())
        self.assertEqual(known["step"], 8)
        rows, runs = [], []
        for folder in (workdir / "wandb" / "first", *workdir.glob("wandb/offline-run-*")):
            for record in whole_file(next(folder.glob("*.wandb"))):
                if record.HasField("run"):
                    runs.append(record.run)
                values = {
                    "/".join(x.nested_key) or x.key: x.value_json for x in record.history.item
                }
                ours = sorted((name, x) for name, x in values.items() if not name.startswith("_"))
                rows += [(record.history.step.num, name, json.loads(x)) for name, x in ours]
        train = [(step, "train/loss", 1 / step) for step in (2, 4, 6, 8)]
        self.assertEqual([*rows[:3], *rows[4:]], train)
        self.assertEqual(rows[3][:2], (8, "evaluation/loss"))
        self.assertEqual({run.run_id for run in runs}, {known["id"]})
        self.assertEqual(
            {(run.project, run.display_name) for run in runs}, {("gradmem_jax", "run")}
        )
        config = {update.key: update.value_json for update in runs[0].config.update}
        self.assertEqual(json.loads(config["lm"])["width"], 8)

    def test_no_failure_ends_training(self):
        ended = mock.Mock(side_effect=RuntimeError("gone\n\x1b[2J"))
        fake = types.ModuleType("wandb")
        fake.Settings = fake.init = mock.Mock()
        self.enter_context(mock.patch.dict(sys.modules, {"wandb": fake}))
        for name, count in (("init", 2), ("log", 1), ("finish", 1)):
            run = mock.Mock(dir="x", url="https://there")
            fake.init = mock.Mock(return_value=run)
            (setattr(fake, name, ended) if name == "init" else setattr(run, name, ended))
            workdir = self.folder / name
            workdir.mkdir()
            with self.assertLogs("experiments", "WARNING") as logs:
                writer = WandbWriter(RunToWrite(workdir, {}, first_step=0))
                for step in (1, 2):
                    writer.write(step, {"train/loss": 1.0})
                writer.close()
            self.assertLen(logs.output, count)
            self.assertRegex(
                logs.output[0], r"failed \(RuntimeError: gone.n.u001b.*training goes on"
            )

    @parameterized.parameters("[]", "{", '{"id": "../x", "step": 1}', '{"id": "ab", "step": "1"}')
    def test_a_damaged_place_begins_another_run(self, text):
        (self.folder / "wandb_run.json").write_text(text)
        fake = types.ModuleType("wandb")
        fake.Settings, fake.init = mock.Mock(), mock.Mock(return_value=mock.Mock(dir="x"))
        with (
            mock.patch.dict(sys.modules, {"wandb": fake}),
            contextlib.closing(WandbWriter(RunToWrite(self.folder, {}, first_step=4))) as writer,
        ):
            writer.write(1, {"train/loss": 1.0})
        self.assertRegex(fake.init.call_args.kwargs["id"], "^[0-9a-f]{8}$")
        fake.init.return_value.log.assert_called_once()


if __name__ == "__main__":
    absltest.main()
