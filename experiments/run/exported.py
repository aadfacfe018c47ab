"""What experiments.export makes of a run, written as one and opened only as one."""

import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.program import files
from experiments.run.workdir import EXPORTED, LM, PARAMS
from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage import reading
from gradmem_jax.storage.arrays_file import open_arrays
from gradmem_jax.storage.hashing import hash_bytes
from gradmem_jax.storage.params_file import save_params
from gradmem_jax.storage.writing import Writer, write_files
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer
from gradmem_jax.trees import Params

_LM_CONFIG = f"{LM}/config.json"
FILES = (
    PARAMS,
    "tokenizer.json",
    "tokenizer_config.json",
    _LM_CONFIG,
    "config.json",
)  # those that exported.json vouches for
README = "README.md"
_REPORTS = ("evaluation.json", "evaluation.png")


def write_exported(
    out: pathlib.Path,
    params: Params,
    step: int,
    fields: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    lm: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    card: str | None = None,
) -> None:
    """Writes an export in one step: whatever happens, there is the older one, this one, or none.

    Args:
        out: its folder, made if missing.
        params: the parameters.
        step: the training step that they are of.
        fields: the configuration of the run.
        tokenizer: the run's; written if it is one of text.
        lm: config.json of the pretrained language model, if there is one.
        dtype: what parameters are stored as; see `save_params`.
        card: the README.md; None for none.

    Raises:
        ValueError: see `save_params` and `write_files`; or the disk takes no more.
    """
    fields = dict(fields)
    writers: dict[str, Writer] = {PARAMS: lambda path: save_params(path, params, dtype)}
    if isinstance(tokenizer, TextTokenizer):
        writers["tokenizer.json"] = tokenizer.save
        writers["tokenizer_config.json"] = lambda path: files.write_json(path, tokenizer.config)
        fields["data"] = fields["data"] | {"tokenizer_path": "", "pad_token": ""}
    if lm is not None:
        writers[_LM_CONFIG] = lambda path: files.write_json(path, lm)
        fields["pretrained"] = LM
    writers["config.json"] = lambda path: files.write_json(path, fields)
    names = tuple(writers)  # README.md is not among them: people may write on
    if card is not None:
        writers[README] = lambda path: path.write_text(card, encoding="utf-8")

    def write_marker(path: pathlib.Path) -> None:
        checksums = {name: _checksum(path.parent / name) for name in names}
        files.write_json(path, {"step": step, "dtype": dtype, "checksums": checksums})

    writers[EXPORTED] = write_marker
    older = [name for name in (*FILES, *_REPORTS, README) if name not in writers]
    try:
        write_files(out, writers, remove=older)
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written ({error.strerror}); make room there, or choose another "
            "folder, and export the run again."
        ) from error


def exported_files(folder: pathlib.Path) -> list[str]:
    """The names of the files of an export.

    Raises:
        ValueError: it is none, or its files are of several exports.
    """
    require(
        (folder / EXPORTED).is_file(),
        f"{folder} is no exported run; make one with `python -m experiments.export`.",
    )
    read_step(folder)
    return [name for name in (*FILES, EXPORTED) if (folder / name).exists()]


def read_step(folder: pathlib.Path) -> int:
    """The step of an export.

    Raises:
        ValueError: its exported.json is missing or damaged, or describes other files.
    """
    path = folder / EXPORTED
    content = files.read_json(path)
    step: Any = content.get("step") if isinstance(content, dict) else None
    require(type(step) is int, f"{path} has no step; export the run again.")
    checksums = content.get("checksums")
    if checksums is None:  # of version 0.1
        return step
    require(
        isinstance(checksums, dict),
        f"{path} has checksums={shown(checksums)} instead of a text for each file; export the run "
        "again.",
    )
    found = {name: _checksum(folder / name) for name in FILES if (folder / name).exists()}
    wrong = [
        name
        for name in sorted({*found, *checksums})
        if name not in found or found[name] != checksums.get(name)
    ]
    require(
        not wrong,
        f"{shown(wrong)} in {folder} are not the files of the export that {EXPORTED} describes; "
        "copy all files of one export, or export the run again.",
    )
    return step


def _checksum(path: pathlib.Path) -> str | None:
    """The hash of a file, for parameters that of their arrays, which their file has."""
    if path.name == PARAMS:
        with open_arrays(path, "file of parameters") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return metadata.get("checksum")
    return hash_bytes(reading.read_bytes(path, "file of an export", reading.LARGEST_JSON))
