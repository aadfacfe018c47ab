"""What --help says, on one screen, and --helpfull, which adds what flags take and what fields are.

Flags stand as they are typed, with their default.
"""

import pathlib
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict

WIDTH = 80
_COLUMN = 28  # where the explanation of a flag begins
_ROOT = f"{pathlib.Path(__file__).parents[2]}/"
_WORD = re.compile(r"--?(help|helpshort|helpfull|\?)")
_OF_LIBRARIES = ("absl.app", "absl.logging", "absl.flags")  # those that a program has a use for


def take_word(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the word of a command line that asks for help, "" if none does, and all others."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    asked = [match[1] for word in arguments[:end] if (match := _WORD.fullmatch(word))]
    others = [word for word in arguments[:end] if not _WORD.fullmatch(word)]
    return asked[-1] if asked else "", [*others, *arguments[end:]]


def short_help() -> str:
    """A program's docstring and its own flags."""
    lines = [*_docstring(), "", *_flags(_own(), with_limits=False), ""]
    return "\n".join([*lines, "--helpfull says more of them."])


def full_help() -> str:
    """The same with what flags take, the fields of --config, and flags of libraries."""
    lines = [*_docstring(), "", *_flags(_own(), with_limits=True)]
    if "config" in flags.FLAGS:
        config = flags.FLAGS["config"].value
        if isinstance(config, ConfigDict):
            lines += ["", "Fields of this --config, explained in experiments/configs/default.py:"]
            lines += ["", *(f"  --config.{field}={value}" for field, value in _fields(config))]
        else:
            lines += ["", "This --config cannot be read."]
    of_modules = flags.FLAGS.flags_by_module_dict()
    theirs = [flag for module in _OF_LIBRARIES for flag in of_modules.get(module, [])]
    lines += ["", "Of libraries:", "", *_flags(theirs, with_limits=False)]
    return "\n".join(lines)


def _own() -> list[flags.Flag]:
    return flags.FLAGS.get_key_flags_for_module(sys.argv[0])


def _docstring() -> list[str]:
    """That of the program, its prose as wide as the screen and its commands as they are."""
    lines: list[str] = []
    prose: list[str] = []
    for line in [*(sys.modules["__main__"].__doc__ or "").strip().splitlines(), ""]:
        if line and not line.startswith(" "):
            prose.append(line)
            continue
        lines += [*textwrap.wrap(" ".join(prose), WIDTH), line]
        prose = []
    return lines[:-1]


def _flags(some: Iterable[flags.Flag], with_limits: bool) -> list[str]:
    """Lines on flags, in the order of their names."""
    ordered = sorted(some, key=lambda flag: flag.name)
    return [line for flag in ordered for line in _flag(flag, with_limits)]


def _flag(flag: flags.Flag, with_limits: bool) -> Iterator[str]:
    default = _default(flag)
    left = f"  --{'[no]' if flag.boolean else ''}{flag.name}"
    text = (flag.help or "").split(";\n")[0]  # behind it absl says that a flag may be repeated
    fits = " " not in default and len(left) + 1 + len(default) < _COLUMN - 1
    if default and not flag.boolean and fits:
        left, default = f"{left}={default}", ""
    if default:
        text = f"{text} Default: {default}."
    if with_limits and flag.parser.syntactic_help:
        text = f"{text} ({flag.parser.syntactic_help})"
    wrapped = textwrap.wrap(text, WIDTH - _COLUMN, break_on_hyphens=False, break_long_words=False)
    if len(left) >= _COLUMN - 1:
        yield left
        left = ""
    for line in wrapped:
        yield f"{left:{_COLUMN}}{line}"
        left = ""


def _default(flag: flags.Flag) -> str:
    """A default as it is typed, "" if there is none to speak of."""
    value = getattr(flag, "default_unparsed", None)  # a --config that is given has none
    if value is None or value is False or value == "":
        return ""
    if flag.boolean:
        return "yes"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return (" " if isinstance(flag, flags.MultiFlag) else ",").join(map(str, value))
    return str(value).removeprefix(_ROOT)


def _fields(config: ConfigDict, before: str = "") -> Iterator[tuple[str, object]]:
    """All fields of a configuration, those of groups as group.field."""
    for name, value in sorted(config.items()):
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
