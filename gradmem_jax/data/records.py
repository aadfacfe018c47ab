"""Records: what a text task is about before it is tokenised, and the files they come from."""

import functools
import gzip
import hashlib
import io
import itertools
import os
import pathlib
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from absl import logging

from gradmem_jax.checks import require, require_local
from gradmem_jax.foreign_text import one_line
from gradmem_jax.storage import reading

SPLITS = ("train", "validation", "test")
DATA_DIR_VARIABLE = "GRADMEM_DATA_DIR"
_SHOWN = 3
_LARGEST_FILE = 4096 * reading.MEBIBYTE


class Record(NamedTuple):
    """One question about a context, or a text alone.

    Attributes:
        id: its name, for reports.
        context: what is written into memory.
        question: what is asked; empty for a text alone.
        answers: all reference answers; the first one is the training target.
        answer_starts: where in the context each answer stands, where that is known.

    Examples:
        >>> from gradmem_jax.data.records import Record
        >>> Record("note 1", "Tea is hot .", "Tea is", ("hot",)).answers
        ('hot',)
    """

    id: str
    context: str
    question: str = ""
    answers: tuple[str, ...] = ()
    answer_starts: tuple[int, ...] = ()


class Skipped(NamedTuple):
    """A record that cannot be used: its name and why."""

    id: str
    reason: str


class Records(NamedTuple):
    """The records of a split, and those that were left out.

    Examples:
        >>> from gradmem_jax.data.records import Record, Records
        >>> Records((Record("note 1", "Tea is hot .", "Tea is", ("hot",)),)).skipped
        ()
    """

    kept: tuple[Record, ...]
    skipped: tuple[Skipped, ...] = ()


@functools.cache
def warn_once(text: str) -> None:
    """Warns, but of the same not again, though every split is read for itself."""
    logging.warning("%s", one_line(text))


def log_skipped(name: str, skipped: tuple[Skipped, ...]) -> None:
    """Warns of the records that were left out, if any: how many, and the first few."""
    if skipped:
        shown = "; ".join(one_line(f"{s.id}: {s.reason}", 300) for s in skipped[:_SHOWN])
        more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        logging.warning("%s: %d records skipped (%s%s)", one_line(name), len(skipped), shown, more)


def split_names(names: Iterable[str], held_out: tuple[str, ...]) -> dict[str, str]:
    """Divides names among splits, the same way for ever, whatever their order.

    Args:
        names: names or whole texts; equal ones stay together.
        held_out: splits that get a tenth each of the different names.

    Returns:
        The split of each name; "train" for those that no other split got.
    """

    def digest(name: str) -> bytes:
        return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()

    ordered = sorted(set(names), key=digest)
    share = -(-len(ordered) // 10)
    splits = [split for split in held_out for _ in range(share)]
    return dict(itertools.zip_longest(ordered, splits[: len(ordered)], fillvalue="train"))


def files_name(*paths: str) -> str:
    """A name of what files hold: their own names and, if any has a folder, a hash of the paths."""
    name = "_".join(pathlib.Path(path).name for path in paths)
    if name == "_".join(paths):
        return name
    digest = hashlib.blake2b("\n".join(paths).encode(), digest_size=4).hexdigest()
    return f"{name}_{digest}"


def data_folder(data_dir: str, name: str) -> pathlib.Path:
    """Returns the folder of a data set.

    Args:
        data_dir: the folder; if empty, the folder `name` inside of GRADMEM_DATA_DIR.
        name: of the data set.

    Raises:
        ValueError: there is no such folder.
    """
    parent = os.environ.get(DATA_DIR_VARIABLE, "")
    require(
        bool(data_dir or parent),
        f"where is {name}? Set data_dir (of a run, --config.data.data_dir) to its folder, or the "
        f"environment variable {DATA_DIR_VARIABLE} to a folder that holds {name}/.",
    )
    require_local("data_dir", data_dir or parent)
    folder = pathlib.Path(data_dir) if data_dir else pathlib.Path(parent) / name
    named = "data_dir (of a run, --config.data.data_dir)" if data_dir else DATA_DIR_VARIABLE
    require(
        folder.exists(),
        f"{folder} does not exist; it should hold the files of {name}: correct {named}.",
    )
    return folder.resolve()


def find_file(folder: pathlib.Path, pattern: str) -> pathlib.Path | None:
    """Finds a file in a folder or in a folder right inside of it, perhaps with .gz behind its name.

    Args:
        folder: where to look.
        pattern: its path from there, in which * stands for anything; or an absolute path.

    Returns:
        The file, or None.

    Raises:
        ValueError: several files fit.
    """
    if pathlib.Path(pattern).is_absolute():
        paths = [path for path in (pattern, pattern + ".gz") if os.path.isfile(path)]
        return pathlib.Path(paths[0]) if paths else None
    if (folder / pattern).is_file():  # a name may hold what a pattern does
        return folder / pattern
    for name in (pattern, f"{pattern}.gz", f"*/{pattern}", f"*/{pattern}.gz"):
        found = sorted(path for path in folder.glob(name) if path.is_file())
        require(len(found) <= 1, f"several files fit {name} in {folder}: {found}; leave one.")
        if found:
            return found[0]
    return None


def require_file(folder: pathlib.Path, pattern: str) -> pathlib.Path:
    """Finds a file as `find_file` does.

    Raises:
        ValueError: it is not there, or several files fit.
    """
    found = find_file(folder, pattern)
    if found is None:
        raise ValueError(f"{folder} has no file {pattern} or {pattern}.gz.")
    return found


def read_text(path: pathlib.Path) -> str:
    """Reads a text file in UTF-8; a file whose name ends in .gz is decompressed.

    Raises:
        ValueError: the file cannot be read, is damaged, empty or no text.
    """
    content = reading.read_bytes(path, "file of texts", _LARGEST_FILE)
    try:
        text = reading.text_of(_unpacked(path, content) if path.suffix == ".gz" else content)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}; get the file again.") from error
    require(bool(text.strip()), f"{path} is empty; get the file again.")
    return text


def _unpacked(path: pathlib.Path, content: bytes) -> bytes:
    limit = reading.largest_unpacked(len(content))
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        unpacked = file.read(limit + 1)
    require(
        len(unpacked) <= limit,
        f"{path} has {len(content)} bytes and unpacks to more than {limit}, which no text does; "
        "unpack it yourself if it is one.",
    )
    return unpacked
