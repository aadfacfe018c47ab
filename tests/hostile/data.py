"""Data folders of strangers: files of tasks, packed or not, and what TFDS wrote."""

import functools
import gzip
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from array_record.python import array_record_module

from gradmem_jax.data.babi.task import BabiConfig
from gradmem_jax.data.prepared import read_prepared, record_features
from gradmem_jax.data.squad import SquadConfig
from gradmem_jax.data.text_spans import TextSpansConfig
from gradmem_jax.data.wikitext import WikiTextConfig
from tests.hostile.inputs import DEEP, damaged, no_files

Case = tuple[str, Callable[[], object], bool]
_BOMB = gzip.compress(bytes(200 * 2**20))
_STORY = "1 Ann slept.\n2 Who slept? \tAnn\t1\n1 Bob slept.\n2 Who slept? \tBob\t1\n"
_ANSWER = {"text": "Ann", "answer_start": 0}
_QUESTION = {"id": "q", "question": "Who?", "answers": [_ANSWER]}
_PARAGRAPH = {"context": "Ann slept.", "qas": [_QUESTION]}
_SQUAD = {"data": [{"title": str(i), "paragraphs": [_PARAGRAPH]} for i in range(12)]}
_VALUES = (None, True, -1, 10**400, 1e999, "", "\ud800", [], {}, [[[]]])
_BROKEN = {"deep": DEEP.encode(), "bytes": b"\xff\xfe\x00", "empty": b"", "blank": b" \n"}


def cases(folder: pathlib.Path) -> Iterator[Case]:
    """Raw files of every task, then folders of records."""
    yield from _texts(folder / "texts")
    yield from _squad(folder / "squad")
    yield from _prepared(folder / "prepared")


def _texts(folder: pathlib.Path) -> Iterator[Case]:
    tasks: dict[str, tuple[Any, str, str]] = {
        "babi": (BabiConfig(variant="en"), "en/qa1_x_test.txt", _STORY),
        "spans": (TextSpansConfig(num_tokens=2), "test/a.txt", "one two three four " * 20),
        "wikitext": (WikiTextConfig(), "wiki.test.raw", "one two three four " * 90),
    }
    for name, (task, file, text) in tasks.items():
        contents = {"sound": text.encode(), **_BROKEN, "bomb": _BOMB}
        contents |= {f"packed, {what}": content for what, content in _damaged(_packed(text))}
        for what, content in contents.items():
            place = folder / name / what.replace(" ", "_")
            ending = ".gz" if what == "bomb" or what.startswith("packed") else ""
            path = place / (file + ending)
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            call = functools.partial(_read, task, place, "test")
            if what == "deep" or (name == "babi" and what == "blank"):
                continue  # nothing in them is wrong: words of a text, stories without questions
            yield f"{name}: {what}", call, what == "sound"
        for path in no_files(folder / name, pathlib.PurePath(file).name):
            place = path.parent / "data"
            (place / file).parent.mkdir(parents=True)
            if path.is_symlink() or path.exists():
                path.rename(place / file)
            yield (
                f"{name}: a {path.parent.name}",
                functools.partial(_read, task, place, "test"),
                False,
            )
    lines = ["1 a.", *(f"{2 * i} b.\n{2 * i + 1} c? \td\t1" for i in range(1, 20_000))]
    place = folder / "babi" / "growing"
    (place / "en").mkdir(parents=True)
    (place / "en/qa1_x_test.txt").write_text("\n".join(lines))
    task = BabiConfig(variant="en")
    yield "babi: contexts of gigabytes", functools.partial(_read, task, place, "test"), False


def _damaged(packed: bytes) -> Iterator[tuple[str, bytes]]:
    """Behind the ten bytes at the start, which name a date and a system that nobody reads."""
    for what, content in damaged(packed[10:], 6, 3):
        yield what, packed[:10] + content


def _packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def _read(task: Any, folder: pathlib.Path, split: str) -> Any:
    return task.read(folder, split)


def _squad(folder: pathlib.Path) -> Iterator[Case]:
    def stored(name: str, content: bytes) -> Callable[[], object]:
        place = folder / name
        place.mkdir(parents=True)
        (place / "train-v1.1.json").write_bytes(content)
        return SquadConfig(data_dir=str(place)).source

    yield "squad", functools.partial(stored("sound", json.dumps(_SQUAD).encode()), "train"), True
    for what, content in _BROKEN.items():
        yield f"squad, {what}", functools.partial(stored(what, content), "train"), False
    places: list[tuple[Any, ...]] = [
        ("data",),
        ("data", 0),
        ("data", 0, "paragraphs"),
        ("data", 0, "paragraphs", 0),
        ("data", 0, "paragraphs", 0, "context"),
        ("data", 0, "paragraphs", 0, "qas"),
        ("data", 0, "paragraphs", 0, "qas", 0),
        ("data", 0, "paragraphs", 0, "qas", 0, "question"),
        ("data", 0, "paragraphs", 0, "qas", 0, "answers"),
        ("data", 0, "paragraphs", 0, "qas", 0, "answers", 0),
        ("data", 0, "paragraphs", 0, "qas", 0, "answers", 0, "text"),
        ("data", 0, "paragraphs", 0, "qas", 0, "answers", 0, "answer_start"),
    ]
    for keys in places:
        for number, value in enumerate(_VALUES):
            content = json.loads(json.dumps(_SQUAD))
            place: Any = content
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = value
            # An article must have paragraphs; a question that is wrong is skipped.
            sound = len(keys) > 3 or (keys[-1] == "paragraphs" and isinstance(value, list))
            call = stored("_".join(map(str, (*keys, number))), json.dumps(content).encode())
            yield f"squad, {keys}: {str(value)[:10]!r}", functools.partial(call, "train"), sound


def _prepared(folder: pathlib.Path) -> Iterator[Case]:
    file = "text_records-test.array_record-00000-of-00001"
    info: dict[str, Any] = {"splits": [{"name": "test", "shardLengths": ["2"]}]}
    metadata: dict[str, Any] = {"records": "name", "skipped": json.dumps({"test": [["a", "b"]]})}
    row = {"id": "a", "context": "b", "question": "c", "answers": ["d"], "answer_starts": [1]}
    rows = [record_features().serialize_example(row)] * 2
    number = iter(range(10**6))

    def stored(info: Any, metadata: Any, content: bytes | list[bytes]) -> Callable[[], object]:
        place = folder / str(next(number))
        place.mkdir(parents=True)
        for name, value in (("dataset_info.json", info), ("metadata.json", metadata)):
            text = value if isinstance(value, str) else json.dumps(value)
            (place / name).write_text(text)
        if isinstance(content, bytes):
            (place / file).write_bytes(content)
        else:
            writer = array_record_module.ArrayRecordWriter(str(place / file), "group_size:1")
            for record in content:
                writer.write(record)
            writer.close()
        return functools.partial(read_prepared, place, "test", "name")

    yield "records", stored(info, metadata, rows), True
    whole = (folder / "0" / file).read_bytes()
    for what, content in damaged(whole[:600], flips=60, cuts=0):
        if what != "empty":
            change = content + whole[600:]
            yield f"records, {what}", _whole_or_refused(stored(info, metadata, change)), True
    for what, content in damaged(whole, flips=0, cuts=8):
        yield f"records, {what}", stored(info, metadata, content), False
    others: dict[str, list[bytes]] = {
        "one": rows[:1],
        "three": [*rows, rows[0]],
        "none": [],
        "no examples": [b"\xff" * 100] * 2,
        "empty examples": [b""] * 2,
        "a bomb": [rows[0], bytes(200 * 2**20)],
    }
    for what, records in others.items():
        yield f"records, {what}", stored(info, metadata, records), False
    wrong: list[Any] = [None, 1, "x", [1], [{}], [None], [{"name": []}], DEEP]
    wrong += [
        [{"name": "test", "shardLengths": x}] for x in (None, 3, ["x"], [None], [-1], [1e999])
    ]
    wrong += [[{"name": "test", "shardLengths": x}] for x in (["1"], ["2", "2"], ["9" * 5000])]
    for value in wrong:
        yield f"splits {str(value)[:40]}", stored({"splits": value}, metadata, rows), False
    for value in (None, [], "x", DEEP, {}, {"records": "name"}, {"records": []}):
        yield f"metadata {str(value)[:20]}", stored(info, value, rows), False
        yield f"info {str(value)[:20]}", stored(value, metadata, rows), False
    for value in (None, [], 1, "x", DEEP, "[]", '{"test": 1}', '{"test": [1]}', '{"test": [[1]]}'):
        yield f"skipped {str(value)[:20]}", stored(info, metadata | {"skipped": value}, rows), False
    for name in (file, "dataset_info.json", "metadata.json"):
        for path in no_files(folder / name, name):
            call = stored(info, metadata, rows)
            place = folder / str(next(number) - 1)
            (place / name).unlink()
            if path.is_symlink() or path.exists():
                path.rename(place / name)
            yield f"{name} is a {path.parent.name}", call, False


def _whole_or_refused(call: Callable[[], object]) -> Callable[[], object]:
    """Of a changed bit: what is read is what was written, or the file is refused."""

    def check() -> object:
        try:
            found: Any = call()
        except ValueError:
            return None
        if [record.context for record in found.kept] != ["b", "b"]:
            raise AssertionError("other records than were written")
        return found

    return check
