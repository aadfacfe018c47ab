"""Runs of strangers: configurations, checkpoints, parameters, metrics, events, batches, links."""

import functools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save, save_file

from experiments.program import files, locks
from experiments.run.build import build
from experiments.run.saved_run import SavedRun
from experiments.run.scalar_writer import RunToWrite
from experiments.run.tensorboard_writer import TensorBoardWriter
from gradmem_jax.storage import checkpoint
from gradmem_jax.storage.params_file import FORMAT, load_params, save_params
from tests.experiments.tiny_run import random_run, tiny_config
from tests.hostile.inputs import DEEP, damaged, no_files
from tests.hostile.run_files import Case, batches, events, reports

_FIELDS = {
    ("lm", "width"): (0, 1.5, 10**9, 2**62),
    ("lm", "num_layers"): (0, 2, 10**9, 2**62),
    ("lm", "num_heads"): (0, 3, 10**9),
    ("lm", "dtype"): ("float1", "O", "object", 3),
    ("model", "num_memory_tokens"): (0, 3 * 10**9, 2**40),
    ("model", "num_write_steps"): (10**9, 2**40),
    ("model", "second_order_steps"): (-1, 10**9, "x"),
    ("data", "alphabet_size"): (0, 10**9, 2**62),
    ("data", "num_pairs"): (0, 10**9, 2**62),
    ("data", "key_length"): (0, 10**9),
    ("data", "noise"): (2, float("nan"), float("inf")),
    ("write_optimizer", "name"): ("__class__", "os", "tree", "chain", "adam", "x" * 10**5),
    ("curriculum", "num_pairs"): ([10**9], [[2]], [2, "x"], ["x"] * 10**5),
    ("frozen",): (["(a+)+$"], ["("], ["x" * 10**5, 3], [".*" * 50]),
    ("batch_size",): (2**70, 2.5),
    ("mesh", "data"): ("x", [], 1.5),
    ("method",): ("nothing", "__init__"),
    ("task",): ("nothing", "os"),
    ("pretrained",): ("nowhere", "/dev/zero", "\x00"),
}


def cases(folder: pathlib.Path) -> Iterator[Case]:
    """Yields inputs by name, what opens them, and whether they are sound."""
    for part in (_configs, _checkpoints, _params, reports, events, batches, _links):
        place = folder / part.__name__.removeprefix("_")
        place.mkdir(parents=True)
        for name, call, is_sound in part(place):
            yield f"runs, {place.name}: {name}", call, is_sound


@functools.cache
def _parameters() -> dict[str, np.ndarray]:
    """Parameters of `tiny_config`."""
    model = build(tiny_config()).target.model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes)


def _run(folder: pathlib.Path, fields: Any) -> pathlib.Path:
    """An exported run with a configuration."""
    folder.mkdir()
    (folder / "config.json").write_text(fields if isinstance(fields, str) else json.dumps(fields))
    save_params(folder / "params.safetensors", _parameters())
    files.write_json(folder / "exported.json", {"step": 1})
    return folder


def _open(folder: pathlib.Path) -> object:
    run = SavedRun(folder)
    return run.plan, run.params()


def _changed(fields: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    return fields | {name: _changed(fields[name], tuple(rest), value) if rest else value}


def _configs(folder: pathlib.Path) -> Iterator[Case]:
    """config.json of an exported run."""
    whole = files.to_json(tiny_config().to_dict())
    count = 0

    def case(name: str, fields: Any, is_sound: bool = False) -> Case:
        nonlocal count
        count += 1
        place = folder / str(count)
        return name, lambda: _open(_run(place, fields)), is_sound

    yield case("as it was", whole, True)
    yield case("a field that is gone", whole | {"gone": [1, {"x": 2}]}, True)
    yield case("another batch size", whole | {"batch_size": 2**40}, True)
    for path, values in _FIELDS.items():
        for value in values:
            yield case(f"{path}={str(value)[:20]}", _changed(whole, path, value))
    for group in ("lm", "model", "data", "optimizer", "curriculum", "mesh", "write_optimizer"):
        for value in (None, [], "x", 3, {"x.y": 1}, {"x": 1}):
            is_sound = value == {"x": 1} and group in ("optimizer", "curriculum", "mesh")
            yield case(f"{group}={value}", whole | {group: value}, is_sound)
        for name in whole[group].keys() - {"arguments"}:
            yield case(f"{group}.{name}", _changed(whole, (group, name), {"x": {}}))
    for name in ("seed", "num_steps", "log_every", "final_split", "shuffle", "best_metric"):
        for value in ([], {"x": {}}, [[1]], 1e308):
            yield case(f"{name}={value}", whole | {name: value})
    deep: Any = 1
    for _ in range(300):
        deep = {"x": deep}
    for name, text in {
        "deep": DEEP,
        "rather deep": json.dumps(whole | {"lm": deep}),
        "deep lists": json.dumps(whole | {"frozen": json.loads("[" * 300 + "]" * 300)}),
        "long number": '{"seed": ' + "9" * 10_000 + "}",
        "no JSON": "{",
        "a list": "[]",
        "nothing": "",
    }.items():
        yield case(name, text)
    for path in no_files(folder, "config.json"):
        yield f"config.json in {path.parent.name}", functools.partial(_open, path.parent), False
    for step in (None, "1", 1.5, [], {}):
        place = folder / f"step {str(step)[:9]}"
        text = json.dumps({"step": step})
        yield f"step={text[:20]}", functools.partial(_open_step, place, whole, text), False


def _open_step(folder: pathlib.Path, fields: Any, text: str) -> object:
    _run(folder, fields)
    (folder / "exported.json").write_text(text)
    return _open(folder)


def _checkpoints(folder: pathlib.Path) -> Iterator[Case]:
    """The checkpoint of a run, its files changed one at a time."""
    run = folder / "run"
    random_run(run, tiny_config())
    step = run / "checkpoints" / "1"
    yield "as it was", functools.partial(_open_run, run), True
    paths = sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)
    for i, path in enumerate(paths):
        content = path.read_bytes()
        is_needed = "ocdbt.process_0" not in path.parts and path.name != "_sharding"
        is_needed &= path.name not in ("commit_success.txt", "process_0", "_CHECKPOINT_METADATA")
        if not is_needed:
            continue
        for name, other in damaged(content, flips=4, cuts=2):
            if content[:1] == b"{":  # JSON may be changed and say the same
                continue
            yield (
                f"{path.relative_to(step)}, {name}",
                functools.partial(_with_file, run, folder / f"{i} {name}", path, other),
                False,
            )
        for name, text in (("deep", DEEP), ("list", "[]"), ("number", "3"), ("cut", "{")):
            yield (
                f"{path.relative_to(step)}, {name}",
                functools.partial(_with_file, run, folder / f"{i} {name}", path, text.encode()),
                False,
            )
        yield (
            f"{path.relative_to(step)}, a FIFO",
            functools.partial(_with_file, run, folder / f"{i} fifo", path, None),
            False,
        )


def _with_file(
    run: pathlib.Path, copy: pathlib.Path, path: pathlib.Path, content: bytes | None
) -> object:
    """Opens a copy of a run with another file in the place of one; None is a FIFO."""
    shutil.copytree(run, copy)
    place = copy / path.relative_to(run)
    place.unlink()
    if content is None:
        os.mkfifo(place)
    else:
        place.write_bytes(content)
    return _open_run(copy)


def _open_run(folder: pathlib.Path) -> object:
    return checkpoint.restore_params(folder / "checkpoints")


def _params(folder: pathlib.Path) -> Iterator[Case]:
    """Files of parameters."""
    path = folder / "whole.safetensors"
    save_params(path, _parameters())
    yield "as it was", functools.partial(load_params, path), True

    def case(name: str, content: bytes) -> Case:
        place = folder / f"{name.replace('/', ' ')[:40]}.safetensors"
        place.write_bytes(content)
        return name, functools.partial(load_params, place), False

    for name, content in damaged(path.read_bytes(), flips=40, cuts=10):
        yield case(name, content)
    ones = {"x": np.ones(2, np.float32)}
    for i, dtypes in enumerate(("", "{", "3", "[]", '{"y": "float32"}', DEEP)):
        metadata = {"format": FORMAT, "checksum": "", "dtypes": dtypes}
        yield case(f"dtypes {i}", save(ones, metadata))
    for dtype in (3, None, [], "O", "f4,f4", "V9", "int32", "complex64", "x" * 10**5):
        metadata = {"format": FORMAT, "checksum": "", "dtypes": json.dumps({"x": dtype})}
        yield case(f"dtype {str(dtype)[:9]}", save(ones, metadata))
    for place in no_files(folder, "params.safetensors"):
        yield place.parent.name, functools.partial(load_params, place), False
    (folder / "other.safetensors").write_bytes(b"")
    save_file(ones, folder / "other.safetensors")
    yield "of another kind", functools.partial(load_params, folder / "other.safetensors"), False


def _links(folder: pathlib.Path) -> Iterator[Case]:
    """Links in the place of what training writes."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("checkpoints", "checkpoints.damaged", "checkpoints/5"):
        place = folder / name.replace("/", " ") / name
        place.parent.mkdir(parents=True)
        place.symlink_to(elsewhere)
        yield name, functools.partial(_start, folder / name.replace("/", " ")), False
    for name in ("train.lock", "tensorboard"):
        place = folder / name / name
        place.parent.mkdir(parents=True)
        place.symlink_to(elsewhere / "new" if name == "train.lock" else elsewhere)
        yield name, functools.partial(_start, folder / name), False
    yield "none", functools.partial(_start, folder / "new"), True


def _start(workdir: pathlib.Path) -> object:
    """Opens for writing what a start of training opens."""
    with locks.hold(workdir / "train.lock"):
        TensorBoardWriter(RunToWrite(workdir, {}, first_step=0)).close()
        with checkpoint.open_checkpoints(workdir / "checkpoints"):
            return None
