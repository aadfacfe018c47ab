"""Files of a run beside its configuration and parameters: reports, events, batches."""

import functools
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.program import files
from experiments.results.finished_runs import find_runs
from experiments.results.page import write_report
from experiments.run.nonfinite import load_batch
from experiments.run.scalar_writer import RunToWrite
from experiments.run.tensorboard_writer import TensorBoardWriter, read_scalars
from experiments.sweeps.runner import finished
from tests.experiments.tiny_run import tiny_config
from tests.hostile.inputs import DEEP, damaged, no_files

Case = tuple[str, Callable[[], object], bool]

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


def reports(folder: pathlib.Path) -> Iterator[Case]:
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
            is_sound |= name == "read_loss" and isinstance(value, float)
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


def events(folder: pathlib.Path) -> Iterator[Case]:
    """Event files."""
    writer = TensorBoardWriter(RunToWrite(folder / "whole", {}, first_step=0))
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


def batches(folder: pathlib.Path) -> Iterator[Case]:
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
