"""Contexts to write: from files to ids of few shapes."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.program.console import log
from experiments.program.files import find_files
from gradmem_jax.checks import require
from gradmem_jax.data.task import Tokenizer, starting_ids
from gradmem_jax.foreign_text import is_text, one_line, shown
from gradmem_jax.storage import reading

_SMALLEST_BUCKET = 16
_MAX_SHOWN = 10  # unknown words
_LARGEST_FILE = 256 * reading.MEBIBYTE
_LONGEST_TOKEN = 1000  # characters; more than any tokenizer takes for one token, text over


class Context(NamedTuple):
    """A text to write.

    Attributes:
        name: its path, or what its line of a JSON-lines file calls it.
        text: the text.
    """

    name: str
    text: str


class Batch(NamedTuple):
    """Contexts that are written together.

    Attributes:
        indices: which contexts they are; at the end of `ids` are copies of the last one.
        ids: int32 [B, S], or [B, T, S] for T segments, padded on the right.
    """

    indices: list[int]
    ids: np.ndarray


def read_contexts(patterns: Sequence[str]) -> list[Context]:
    """Reads contexts, each file once.

    Args:
        patterns: paths or patterns such as `docs/*.txt`. A file is one context, of its text
            without line breaks at its end; a `.jsonl` file has one in each line, an object with
            "context" and, if it is to be called something, "name".

    Raises:
        ValueError: a file is missing, a directory, empty, or not UTF-8; or a line is no context.
    """
    contexts: list[Context] = []
    for path in dict.fromkeys(path for pattern in patterns for path in find_files(pattern)):
        text = _read(path)
        found = _read_lines(path, text) if path.endswith(".jsonl") else [Context(path, text)]
        for name, content in found:
            require(bool(content.strip()), f"{name} is empty: there is nothing to write.")
            contexts.append(Context(name, content.rstrip("\r\n")))
    require(bool(contexts), "there are no contexts; name files to write with --context.")
    return contexts


def _read(path: str) -> str:
    require(
        not pathlib.Path(path).is_dir(),
        f"{path} is a directory; name its files, as in --context='{path.rstrip('/')}/*.txt'.",
    )
    return reading.read_text(path, "text", _LARGEST_FILE)


def _read_lines(path: str, text: str) -> list[Context]:
    contexts = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines splits at U+2028 too
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = reading.parse_json(line, where)
            name, content = fields.get("name", where), fields["context"]
            require(isinstance(content, str) and is_text(content), "a context is a text")
            require(isinstance(name, str | int | float), "a name is a text")
            contexts.append(Context(str(name), content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{where} is no context: give an object such as {{"name": "a", "context": "text"}}.'
            ) from error
    require(bool(contexts), f"{path} is empty: there is nothing to write.")
    return contexts


def unknown_words(text: str, tokenizer: Tokenizer) -> str:
    """Says which words of a text the model has never seen and cannot tell apart, "" if none."""
    unknown = tokenizer.unknown(text)
    if not unknown:
        return ""
    words = dict.fromkeys(unknown)
    some = ", ".join(map(shown, [*words][:_MAX_SHOWN]))
    more = f" and {len(words) - _MAX_SHOWN} more" if len(words) > _MAX_SHOWN else ""
    return f"the model does not know {some}{more}; unknown words are all the same to it"


def warn_of_unknown(name: str, text: str, tokenizer: Tokenizer) -> None:
    """Logs `unknown_words`, for programs; a page shows them to who typed them."""
    said = unknown_words(text, tokenizer)
    if said:
        log.warning("%s: %s", one_line(name), said)


def encode_context(
    context: Context,
    tokenizer: Tokenizer,
    *,
    pad_id: int,
    limit: int,
    segment_tokens: int | None = None,
    if_too_long: str = "",
) -> np.ndarray:
    """Tokenises a context.

    Args:
        context: the context.
        tokenizer: the model's tokenizer.
        pad_id: the model's padding.
        limit: tokens that one WRITE of the model can take.
        segment_tokens: length of the segments that a longer context comes in.
        if_too_long: what a message advises then; the flag of the programs by default.

    Returns:
        int32 [S], or [T, S] if the context comes in segments, the last one padded on the right.

    Raises:
        ValueError: the context has no tokens, holds the padding token, or is too long.
    """
    longest = limit if segment_tokens is None else segment_tokens
    require(
        1 <= longest <= limit,
        f"--segment_tokens={longest}: the model takes 1 to {limit} tokens in one WRITE.",
    )
    characters = len(context.text)
    remedy = if_too_long or (
        f"write it segment after segment with --segment_tokens={limit} or less"
    )
    require(
        segment_tokens is not None or characters <= limit * _LONGEST_TOKEN,
        f"{context.name} has {characters} characters, the model takes at most {limit} tokens in "
        f"one WRITE; {remedy}.",
    )
    ids = starting_ids(tokenizer, context.text)
    require(len(ids) > 0, f"{context.name} has no tokens: there is nothing to write.")
    require(
        pad_id not in ids,
        f"{context.name} holds the padding token {pad_id} of the model, which stands for no text; "
        "take it out.",
    )
    if segment_tokens is None or len(ids) <= segment_tokens:
        require(
            len(ids) <= limit,
            f"{context.name} has {len(ids)} tokens, the model takes at most {limit} in one WRITE; "
            f"{remedy}.",
        )
        return ids
    count = -(-len(ids) // segment_tokens)
    padded = np.full(count * segment_tokens, pad_id, np.int32)
    padded[: len(ids)] = ids
    return padded.reshape(count, segment_tokens)


def bucket(length: int, limit: int) -> int:
    """The smallest power of two that holds a length, but not more than `limit`."""
    return min(max(_SMALLEST_BUCKET, 1 << (length - 1).bit_length()), limit)


def make_batches(
    contexts: Sequence[np.ndarray], batch_size: int, *, pad_id: int, limit: int
) -> Iterator[Batch]:
    """Puts contexts of similar length together, so that few shapes are compiled.

    Those in segments have lengths of their own already.

    Args:
        contexts: int32 [S] or [T, S] each.
        batch_size: contexts in a batch, at most.
        pad_id: what they are padded with.
        limit: longest S allowed.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, ids in enumerate(contexts):
        shape = ids.shape if ids.ndim == 2 else (bucket(len(ids), limit),)
        groups.setdefault(shape, []).append(i)
    for shape, indices in sorted(groups.items()):
        size = min(batch_size, len(indices))
        for start in range(0, len(indices), size):
            chosen = indices[start : start + size]
            batch = np.full((size, *shape), pad_id, np.int32)
            for row, i in enumerate(chosen):
                batch[row, ..., : contexts[i].shape[-1]] = contexts[i]
            batch[len(chosen) :] = batch[len(chosen) - 1]
            yield Batch(chosen, batch)
