"""Contexts and questions of strangers: files, lines and texts."""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator

from experiments.answers.contexts import Context, encode_context, read_contexts
from gradmem_jax.tokenizers.characters import CharTokenizer
from gradmem_jax.tokenizers.text_tokenizer import word_tokenizer
from tests.hostile.inputs import DEEP, no_files

_LINES = {
    "deep": DEEP,
    "no object": "[1]",
    "a number": "1",
    "null": "null",
    "no context": '{"text": "x"}',
    "a list": '{"context": ["x"]}',
    "nothing": '{"context": null}',
    "empty": '{"context": " "}',
    "half a character": '{"context": "\\ud800"}',
    "a name of objects": '{"name": {"a": 1}, "context": "x"}',
    "no name": '{"name": null, "context": "x"}',
    "digits": '{"context": ' + "1" * 10_000 + "}",
    "cut": '{"context": "x',
    "no JSON": "context",
}


def cases(folder: pathlib.Path) -> Iterator[tuple[str, Callable[[], object], bool]]:
    """Files of contexts, and contexts that no model has room for."""
    folder.mkdir()

    def stored(name: str, content: bytes) -> Callable[[], object]:
        (folder / name).write_bytes(content)
        return functools.partial(read_contexts, [str(folder / name)])

    for name in ("a.txt", "a.jsonl"):
        for path in no_files(folder / name.replace(".", "_"), name):
            yield (
                f"{name} is a {path.parent.name}",
                functools.partial(read_contexts, [str(path)]),
                False,
            )
        for what, content in {
            "latin": "é".encode("latin-1"),
            "UTF-16": "context".encode("utf-16"),
            "surrogates": b"\xed\xa0\x80",
            "blank": b" \n\r\n\t",
            "empty": b"",
        }.items():
            yield f"{name}, {what}", stored(f"{what}_{name}", content), False
    for what, line in _LINES.items():
        yield f"line, {what}", stored(f"{what}.jsonl", line.encode()), False
        after = b'{"context": "x"}\n' + line.encode()
        yield f"second line, {what}", stored(f"{what}_2.jsonl", after), False
    for name in ("\x1b[2J\nerror: forged", "\ud800", "x" * 10**6):
        line = json.dumps({"name": name, "context": "one"}).encode()
        yield f"name {name[:5]!r}", stored(f"{len(name)}.jsonl", line), True
    megabytes = json.dumps({"context": "one two " * 10**6}).encode()
    yield "a line of megabytes", stored("large.jsonl", megabytes), True

    for tokenizer in (CharTokenizer("abc "), word_tokenizer(["one two"])):
        for what, text, sound in (
            ("fits", "abc" if isinstance(tokenizer, CharTokenizer) else "one two", True),
            ("is long", "ab " * 100, False),
            ("is enormous", "ab " * 10**7, False),
            ("is enormous and one word", "a" * 3 * 10**7, False),
            ("is blanks", " " * 10**7, False),
        ):
            context = Context(what, text)
            call = functools.partial(encode_context, context, tokenizer, pad_id=0, limit=50)
            yield f"{type(tokenizer).__name__}: it {what}", call, sound
