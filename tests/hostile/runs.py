"""Runs of strangers: configurations, checkpoints, parameters, metrics, events, batches, links."""

import functools
import io
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save, save_file

from experiments.program import files, locks
from experiments.results.finished_runs import find_runs
from experiments.results.page import write_report
from experiments.run.build import build
from experiments.run.nonfinite import load_batch
from experiments.run.progress import ScalarWriter, read_scalars
from experiments.run.saved_run import SavedRun
from experiments.sweeps.runner import finished
from gradmem_jax.storage import checkpoint
from gradmem_jax.storage.params_file import FORMAT, load_params, save_params
from tests.experiments.tiny_run import random_run, tiny_config
from tests.hostile.inputs import DEEP, damaged, no_files

Case = tuple[str, Callable[[], object], bool]

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
_METRICS = {
    "method": "gradmem",
    "num_write_steps": 1,
    "exact_match": 0.5,
    "token_accuracy": 0.5,
    "read_loss": 1.0,
    "memory_floats": 16,
    "num_parameters": 100,
    "steps": 8,
    "seconds": 2.0,
    "devices": ["1 cpu"],
    "by_num_write_steps": {
        "1": {"exact_match": 0.5, "token_accuracy": 0.5, "read_loss": 1.0, "write_loss": 1.0}
    },
}


def cases(folder: pathlib.Path) -> Iterator[Case]:
    """Yields inputs by name, what opens them, and whether they are sound."""
    for part in (_configs, _checkpoints, _params, _reports, _events, _batches, _links):
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


def _reports(folder: pathlib.Path) -> Iterator[Case]:
    """metrics.json and config.json of a finished run."""
    config = files.to_json(tiny_config().to_dict())
    count = 0

    def case(name: str, config: Any, metrics: Any, is_sound: bool = False) -> Iterator[Case]:
        nonlocal count
        count += 1
        root = folder / str(count)
        (root / "run").mkdir(parents=True)
        for file, content in (("config.json", config), ("metrics.json", metrics)):
            text = content if isinstance(content, str) else json.dumps(content)
            (root / "run" / file).write_text(text)
        yield f"report, {name}", functools.partial(_report, root, is_sound), is_sound
        yield f"sweep, {name}", functools.partial(finished, root / "run"), True

    yield from case("as it was", config, _METRICS, True)
    for name in _METRICS:
        for value in (None, "x", [], {}, {"x": []}, [3], float("nan"), 1e999, 10**400):
            is_sound = name in ("num_write_steps", "method") or (name == "devices" and value == [])
            if not is_sound:
                yield from case(f"{name}={str(value)[:9]}", config, _METRICS | {name: value})
    for key, row in (("x", {}), ("9" * 5000, {}), ("1", []), ("1", {"exact_match": 2}), ("1", 3)):
        metrics = _METRICS | {"by_num_write_steps": {key: row}}
        yield from case(f"row {key[:5]} {row}", config, metrics)
    for name in ("model", "data", "method", "task", "best_metric", "lm"):
        for value in (None, "x", [], 3, {"num_pairs": "x"}):
            is_sound = value == "x" and name == "method"
            is_sound |= value == {"num_pairs": "x"} and name == "lm"
            if not is_sound and (name, value) != ("task", "x"):
                yield from case(f"{name}={value}", config | {name: value}, _METRICS)
    yield from case("deep metrics", config, DEEP)
    yield from case("deep configuration", DEEP, _METRICS)
    for path in no_files(folder, "metrics.json"):
        (path.parent / "config.json").write_text(json.dumps(config))
        yield f"{path.parent.name}", functools.partial(find_runs, path.parent), False


def _report(root: pathlib.Path, draws: bool) -> object:
    """Writes a report; without its figures, which take a second, if there should be none."""
    if draws:
        return write_report(root, root / "report")
    return find_runs(root)


def _events(folder: pathlib.Path) -> Iterator[Case]:
    """Event files."""
    writer = ScalarWriter(folder / "whole")
    (path,) = (folder / "whole" / "tensorboard").iterdir()
    last = 0
    for step in range(4):
        last = path.stat().st_size
        writer.write(step, {"train/loss": 1 / (step + 1), "train/exact_match": 0.5})
    writer.close()
    content = path.read_bytes()
    yield "as it was", functools.partial(read_scalars, folder / "whole"), True
    yield "cut short", *_events_case(folder / "cut", content[:-5]), True
    for i, (name, other) in enumerate(damaged(content[:last], flips=40, cuts=0)):
        if name != "empty":
            yield name, *_events_case(folder / f"flip {i}", other), False
    for i, length in enumerate((2**63, 2**64 - 1, 2**40)):
        other = content + length.to_bytes(8, "little") + b"abcd" + b"x" * 99
        yield f"length {length}", *_events_case(folder / f"length {i}", other), False
    yield "zeros", *_events_case(folder / "zeros", bytes(10**6)), False
    for path in no_files(folder, "tensorboard/events.out.tfevents.1"):
        is_sound = path.parents[1].name in ("missing",)
        yield path.parents[1].name, functools.partial(read_scalars, path.parents[1]), is_sound


def _events_case(folder: pathlib.Path, content: bytes) -> tuple[Callable[[], object]]:
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events.out.tfevents.1").write_bytes(content)
    return (functools.partial(read_scalars, folder),)


def _batches(folder: pathlib.Path) -> Iterator[Case]:
    """Batches that were not finite."""
    ids = np.ones((2, 5), np.int32)
    queries = {"query_ids": ids, "labels": ids, "value_mask": ids > 0}
    whole: dict[str, Any] = {"context_ids": ids, **queries, "index": np.arange(2)}
    whole |= {"step": np.asarray(3), "num_write_steps": np.asarray(1)}

    def case(name: str, content: bytes, is_sound: bool = False) -> Case:
        path = folder / f"{name[:40]}.npz"
        path.write_bytes(content)
        return name, functools.partial(load_batch, path), is_sound

    yield case("as it was", _npz(whole), True)
    for name, value in {
        "context_ids": np.ones((3, 5), np.int32),
        "query_ids": np.ones((2, 6), np.int32),
        "labels": np.ones(2, np.int32),
        "value_mask": np.ones((2, 5), np.float32),
        "index": np.asarray(1),
        "step": np.asarray([3]),
        "num_write_steps": np.asarray(2**40),
    }.items():
        yield case(f"other {name}", _npz(whole | {name: value}))
        yield case(f"no {name}", _npz({k: v for k, v in whole.items() if k != name}))
        yield case(f"objects {name}", _npz(whole | {name: np.array([{}, []], object)}))
        yield case(f"huge {name}", _npz(whole, {name: _header((2**40,)) + bytes(64)}))
        yield case(f"negative {name}", _npz(whole, {name: _header((-1, 2)) + bytes(64)}))
        yield case(f"packed {name}", _npz(whole, {name: bytes(10**7)}, zipfile.ZIP_DEFLATED))
        yield case(f"no array {name}", _npz(whole, {name: b"\x93NUMPY\x01\x00\xff\xff{"}))
    for name, content in damaged(_npz(whole)[:-300], flips=0, cuts=20):
        yield case(name, content)
    for path in no_files(folder, "nonfinite_step_3.npz"):
        yield path.parent.name, functools.partial(load_batch, path), False


def _header(shape: tuple[int, ...]) -> bytes:
    data = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(data, header)
    return data.getvalue()


def _npz(
    arrays: dict[str, Any], raw: dict[str, bytes] | None = None, packed: int = zipfile.ZIP_STORED
) -> bytes:
    """The bytes of a file of arrays; those in `raw` are written as they are."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=True)
            content = (raw or {}).get(name, member.getvalue())
            kind = packed if name in (raw or {}) else zipfile.ZIP_STORED
            file.writestr(f"{name}.npy", content, kind)
    return data.getvalue()


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
        ScalarWriter(workdir).close()
        with checkpoint.open_checkpoints(workdir / "checkpoints"):
            return None
