"""The model that wrote a memory file, opened again: what a file of anybody's may name."""

import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.answers.open_model import OpenModel, foreign_options, kind_of, open_model
from experiments.run.exports_on_hub import find_run
from gradmem_jax.checks import require, require_instance
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.storage import hub


def reopen_model(
    memory: str,
    notes: Mapping[str, Any],
    moved_to: str | None = None,
    tokenizer: str | None = None,
    typed: Sequence[str] = (),
) -> OpenModel:
    """Opens the model that wrote a memory file.

    Anybody may have written the file. So what its notes name is opened only if it lies in the
    folder of the file, or if the user names it.

    Args:
        memory: the file.
        notes: what its header says of the model, see `OpenModel.notes`.
        moved_to: where the user says that the model is.
        tokenizer: where the user says that its tokenizer is, if it has one of its own.
        typed: the words of the user's command, for messages.

    Raises:
        ValueError: there is no such model, or it is one of another kind; or it is elsewhere, and
            the message says what to type.
    """
    named, options = notes.get("model", ""), notes.get("options", {})
    for part, kind in ((named, str), (options, dict)):
        require_instance(f"what {memory} says of its model", part, kind)
    path, options = moved_to or named, dict(options)
    require(bool(path), f"{memory} does not say where its model is; name it with --model.")
    elsewhere = {} if moved_to or _beside(memory, path) else {"model": path}
    if tokenizer is not None:
        options["tokenizer_path"] = tokenizer
    elif isinstance(own := options.get("tokenizer_path"), str):
        inside_model = moved_to is not None and _is_inside(own, moved_to)
        if not (inside_model or _beside(memory, own)):
            elsewhere["tokenizer"] = own
    require(
        not elsewhere,
        f"{memory} names a {' and a '.join(elsewhere)} outside of its folder, and anybody may have "
        f"written it. If you trust what it names: {ask_command(memory, elsewhere, typed)}",
    )
    require(
        os.path.exists(path) or hub.name_on_hub(path) is not None,
        f"there is no model {path}; say with --model where the one that wrote {memory} is now.",
    )
    path = hub.pinned(path)
    run = find_run(path)
    require(
        not foreign_options(run, options),
        f"{memory} was written with {shown(options)}, and {path} is {kind_of(run)}, which takes no "
        "such options; name the model that wrote it with --model.",
    )
    if run is None:
        options.setdefault("add_begin_token", False)
    return open_model(path, options)


def ask_command(memory: str, names: Mapping[str, str], typed: Sequence[str] = ()) -> str:
    """The command that asks a memory, for a shell.

    Args:
        memory: the file.
        names: values of more flags.
        typed: the words that the user gave to experiments.ask.
    """
    words = [*(typed or [f"--memory={memory}"]), *(f"--{name}={x}" for name, x in names.items())]
    return shlex.join(["python", "-m", "experiments.ask", *map(one_line, words)])


def not_beside(memory: str, notes: Mapping[str, Any]) -> dict[str, str]:
    """The flags that `ask` needs for what a memory's notes name, by `reopen_model`."""
    found = {"model": notes["model"], "tokenizer": notes["options"].get("tokenizer_path")}
    return {name: path for name, path in found.items() if path and not _beside(memory, path)}


def _beside(memory: str, path: str) -> bool:
    """Whether something lies in the folder of a memory file, or in one inside of it."""
    return hub.name_on_hub(path) is None and _is_inside(
        path, pathlib.Path(os.path.realpath(memory)).parent
    )


def _is_inside(path: str, folder: str | pathlib.Path) -> bool:
    try:
        inside = pathlib.Path(os.path.realpath(path))
        return inside.is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):  # such as of a path with a zero byte
        return False
