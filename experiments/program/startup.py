"""How every program starts, reads its flags, and ends when it is given what it refuses."""

import contextlib
import importlib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from experiments.program import console, help_text
from gradmem_jax.checks import require, require_local
from gradmem_jax.foreign_text import one_line, printable
from gradmem_jax.storage.checkpoint import CheckpointError

_OURS = tuple(pathlib.Path(__file__).parents[2] / name for name in ("experiments", "gradmem_jax"))
_EXAMPLE = _OURS[0] / "configs" / "kv_quick.py"
_PATHS = ("workdir", "root", "out", "figure", "model", "memory", "batch", "sweep")  # flags
_MAKES_BACKENDS = ("backends", "_init_backend", "_get_backend_uncached")  # functions of JAX
_MODULES = "GRADMEM_MODULES"  # environment variable of modules of one's own
_INTERRUPTED = 130  # what shells give for Ctrl-C


def run(main: Callable[[Sequence[str]], int | None], *, takes_words: bool = False) -> None:
    """Runs a program; what its input is refused for is printed without a traceback.

    One that fails ends at once: a library whose thread hangs, such as one that saves to a disk that
    is gone, cannot keep it alive. One that succeeds ends as Python does.

    Args:
        main: gets the command line behind the flags and returns the exit status, or None for 0.
        takes_words: whether words may stand there that belong to no flag.
    """

    def checked(arguments: Sequence[str]) -> int | None:
        words = arguments[1:]
        require(
            takes_words or not words,
            f"{' '.join(map(repr, words))} belongs to no flag. Write lists with commas, as in "
            "--flag=0,1,2, and switches as --flag or --noflag.",
        )
        return main(arguments)

    status, message = 0, ""
    absl_logging.set_verbosity(absl_logging.ERROR)  # of what is said before flags are read
    try:
        app.run(lambda arguments: without_traceback(checked, arguments), flags_parser=parse_flags)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        message = f"{end.code}\n" if isinstance(end.code, str) else ""
    except BaseException:
        status, message = 1, traceback.format_exc()
    if status:
        _end_now(status, message)


def _import_own_modules() -> None:
    """Imports the modules that GRADMEM_MODULES names, which add tasks, methods or models.

    Raises:
        ValueError: one cannot be imported.
    """
    for name in filter(None, map(str.strip, os.environ.get(_MODULES, "").split(","))):
        try:
            if name.startswith("."):
                raise ImportError("a name that begins with a dot is in no package here")
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"{_MODULES}={name}: {error}. Name modules that Python finds from "
                f"{os.getcwd()} or in PYTHONPATH, with commas between them."
            ) from error


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Reads the flags and returns the other words; ends the process if one of them is wrong.

    Modules of one's own come first: a configuration may need them as soon as its flag is read.
    """
    try:
        _import_own_modules()
    except ValueError as error:
        if not isinstance(error.__cause__, ImportError):  # of such a module itself
            raise
        _refuse(str(error))
    asked, others = help_text.take_word(arguments)
    if asked:
        _show_help(asked, others)
    arguments = _with_found_config(arguments)
    _check_config_file(arguments)
    try:
        with known_fields():
            words = flags.FLAGS(arguments)
        _check_config()
        for name in _PATHS:
            if name in flags.FLAGS and flags.FLAGS[name].value == "":
                _refuse(f"--{name}= is empty, and would be the current folder; give a path.")
        _check_addresses()
        return words
    except flags.Error as error:
        last = str(error).strip().splitlines()[-1].strip()
        if "Traceback" in str(error):
            if last.startswith("ValueError: "):  # of our configurations
                _refuse(last.removeprefix("ValueError: "))
            file, line = re.findall(r'File "(.*)", line (\d+)', str(error))[-1]
            _refuse(f"--config cannot be read: {last} ({file}, line {line}).")
        _refuse(f"{error} {_hint(str(error))}--help lists the flags.")


def _show_help(asked: str, others: Sequence[str]) -> NoReturn:
    """Prints the help that a word asks for, with the values of the other words, and ends."""
    with contextlib.suppress(flags.Error, OSError, SystemExit), known_fields():
        flags.FLAGS(_with_found_config(others))

    def show(_: Sequence[str]) -> None:
        full = asked == "helpfull"
        console.say(help_text.full_help() if full else help_text.short_help())

    sys.exit(without_traceback(show, others) or 0)


def _check_addresses() -> None:
    """Ends the process if a flag names a place that is no folder, such as gs://bucket."""
    for name, value in flags.FLAGS.flag_values_dict().items():
        for text in value if isinstance(value, list) else [value]:
            try:
                require_local(f"--{name}", text)
            except ValueError as error:
                _refuse(str(error))


def find_file(path: str) -> pathlib.Path:
    """A path as it is or, if nothing is there, below the folder that experiments/ lies in."""
    ours = _OURS[0].parent / path
    return ours if ours.exists() and not pathlib.Path(path).exists() else pathlib.Path(path)


def _with_found_config(arguments: Sequence[str]) -> list[str]:
    """A command line whose --config, if it is a file of ours, is found from any folder."""
    words = list(arguments)
    for i, before in enumerate(["", *words[:-1]]):
        flag = "" if before in ("--config", "-config") else "--?config="
        match = re.fullmatch(f"({flag})(experiments/[^:]+)(:.*)?", words[i], re.S)
        if match:
            words[i] = f"{match[1]}{find_file(match[2])}{match[3] or ''}"
    return words


def _check_config() -> None:
    """Ends the process if --config gave something else than a configuration."""
    if "config" in flags.FLAGS and flags.FLAGS["config"].present:
        value = flags.FLAGS["config"].value
        _require_config(type(value).__name__, isinstance(value, ConfigDict))


def _require_config(name: str, is_config: bool) -> None:
    if not is_config:
        _refuse(
            f"--config: its get_config() returned {name}; it must return an "
            f"ml_collections.ConfigDict, as that of {_EXAMPLE} does."
        )


def _check_config_file(arguments: Sequence[str]) -> None:
    """Ends the process if --config names no Python file."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        match = re.fullmatch("--?config(=(.*))?", word, re.S)
        if match and "config" in flags.FLAGS:
            path = pathlib.Path((match[2] if match[1] else following).split(":")[0])
            if not path.is_file():
                what = "a folder" if path.is_dir() else f"no file in {os.getcwd()}"
                _refuse(f"--config={path} is {what}; give a file such as {_EXAMPLE}.")
            if path.suffix != ".py":
                _refuse(f"--config={path} is no Python file; give one such as {_EXAMPLE}.")


def _hint(error: str) -> str:
    """The way to do what a flag of a configuration cannot, if that is what was tried."""
    match = re.search(r"--config\.(\S+)=(.*): Failed to parse .* as a ConfigDict", error)
    if match and match[2].isidentifier():
        name = f"{match[1]}.name" if match[1].endswith("optimizer") else f"{match[1]}.FIELD"
        return f"It is a group of fields; set one of them, as in --config.{name}={match[2]}. "
    if re.search(r"--config\.\S+=none: ", error, re.I):
        return "A file can set a field to None, see experiments/configs/default.py. "
    return ""


@contextlib.contextmanager
def known_fields() -> Iterator[None]:
    """Ends the process if a flag such as --config.sead=1, read in this block, names no field.

    config_flags reads them as soon as --config is defined. What a configuration's own code raises
    ends it too, in a line that says where.
    """
    try:
        yield
    except (flags.Error, OSError):
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if "has no attribute 'get_config'" in str(error):
            _refuse(f"--config has no get_config(); define it there, as {_EXAMPLE} does.")
        if "ml_collections" not in place.filename or "get_config()" in str(error):
            where = f"{place.filename}, line {place.lineno}"
            _refuse(f"--config cannot be read: {type(error).__name__}: {error} ({where}).")
        missing = re.search(r"Attribute <class '(\w+)'>.* lookup: (\S+?)['\"]?$", str(error))
        if missing and "." not in missing[2]:
            _require_config(missing[1], False)
        text = error.args[0] if error.args else ""
        text = repr(missing[2]) if missing else str(getattr(text, "args", [text])[0])
        name, _, hint = text.partition("\n")
        _refuse(
            f"the configuration has no field {name}; experiments/configs/default.py explains those "
            f"it has. {hint}".strip()
        )


def without_traceback(
    main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]
) -> int | None:
    """Ends the process with status 1 and the message of an error that our own code raised.

    Those of other packages keep their traceback: they are mistakes of ours.
    """
    try:
        status = main(arguments)
        sys.stdout.flush()
        console.check()
        return status
    except (ValueError, CheckpointError) as error:
        if not is_refusal(error):
            raise
        _refuse(str(error))
    except (RuntimeError, AssertionError) as error:
        if traceback.extract_tb(error.__traceback__)[-1].name not in _MAKES_BACKENDS:
            raise
        platforms, why = os.environ.get("JAX_PLATFORMS", ""), one_line(str(error), 300)
        _refuse(
            f"JAX finds no device of JAX_PLATFORMS={platforms} ({why or 'no such platform here'}). "
            "Leave JAX_PLATFORMS out, or install JAX for these devices, such as jax[cuda12]."
        )
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # nobody reads what we print
        _drop_output()
        sys.exit(1)
    except OSError as error:
        _refuse(_of_disk(error))


def is_refusal(error: Exception) -> bool:
    """Whether an error is one by which our own code refuses what it is given."""
    if not isinstance(error, ValueError | CheckpointError):
        return False
    raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return any(raised_in.is_relative_to(folder) for folder in _OURS)


def _of_disk(error: OSError) -> str:
    """What a disk or another part of the system refused, in a line; a mistake of ours is raised."""
    if error.errno is None:
        raise error
    where = f": {error.filename}" if error.filename is not None else ""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    return f"{error.strerror}{where}. Mend that and start again."


def _drop_output() -> None:
    """Has what is still to be printed go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_now(status: int, message: str) -> NoReturn:
    """Ends the process without waiting for threads, which may compile for minutes, or hang."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, printable(message))):
        with contextlib.suppress(OSError, ValueError):  # it may be closed
            stream.write(text)
            stream.flush()
    os._exit(status)


def _refuse(message: str) -> NoReturn:
    sys.exit(f"error: {one_line(message)}")


def integers(name: str, values: Sequence[str]) -> list[int]:
    """Reads a flag that lists whole numbers, in ascending order.

    Raises:
        ValueError: one of them is something else.
    """
    require(
        bool(values) and all(value.strip().isdecimal() for value in values),
        f"--{name}={','.join(values)} must be whole numbers from 0 on, separated by commas.",
    )
    return sorted({int(value) for value in values})
