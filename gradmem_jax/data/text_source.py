"""Tokenised records as random-access samples."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np

from gradmem_jax.data.records import Record, Records, Skipped
from gradmem_jax.losses import IGNORE
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer

_AT_ONCE = 256  # texts handed to the tokenizer together
_MAX_CANDIDATES = 64


class Query(NamedTuple):
    """A query with its target: the ids, and where among them the target begins."""

    ids: np.ndarray
    target_start: int


def query_arrays(queries: Sequence[Query], pad_id: int) -> dict[str, np.ndarray]:
    """Returns query_ids, labels and value_mask [R, Q] of R queries, padded to the longest one."""
    shape = len(queries), max(len(query.ids) for query in queries)
    query_ids, labels = np.full(shape, pad_id, np.int32), np.full(shape, IGNORE, np.int32)
    for row, (ids, start) in enumerate(queries):
        query_ids[row, : len(ids)] = ids
        labels[row, start : len(ids)] = ids[start:]
    return {"query_ids": query_ids, "labels": labels, "value_mask": labels >= 0}


def _no_queries(index: int) -> tuple[Query, ...]:
    del index
    return ()


@dataclasses.dataclass(frozen=True, eq=False)
class TextSource:
    """Random access to the samples of a split; see `task.Source`.

    Attributes:
        contexts: ids of each context.
        queries: ids of each query with its target.
        target_starts: int [n], where in a query its target begins.
        record: gives the texts of sample i.
        skipped: the records that no sample was made of, and why.
        more_queries: gives the other queries of sample i, equally many of each sample.
        longest_other: no query of `more_queries` has more tokens.
        pad_id: the id that fills the shorter of a sample's queries.
    """

    contexts: Sequence[np.ndarray] | np.ndarray
    queries: Sequence[np.ndarray] | np.ndarray
    target_starts: np.ndarray
    record: Callable[[int], Record]
    skipped: tuple[Skipped, ...] = ()
    more_queries: Callable[[int], Sequence[Query]] = _no_queries
    longest_other: int = 0
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.contexts)

    def __repr__(self) -> str:
        return f"TextSource({len(self)} samples, {len(self.skipped)} skipped)"

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside [0, {len(self)}).")
        first = Query(self.queries[index], self.target_starts[index])
        queries = [first, *self.more_queries(index)]
        return {"context_ids": self.contexts[index]} | query_arrays(queries, self.pad_id)

    @property
    def context_lengths(self) -> np.ndarray:
        """Tokens of each context, int64 [n]."""
        return np.array([len(context) for context in self.contexts])

    @property
    def longest_query(self) -> int:
        """Tokens of the longest query with its target."""
        return max([self.longest_other, *map(len, self.queries)])

    def first(self, count: int | None) -> "TextSource":
        """Returns the first `count` samples; all if it is None."""
        return self if count is None else self.select(np.arange(len(self))[:count])

    def select(self, indices: np.ndarray) -> "TextSource":
        """Returns the samples of indices [n] in this order."""
        return dataclasses.replace(
            self,
            contexts=[self.contexts[i] for i in indices],
            queries=[self.queries[i] for i in indices],
            target_starts=self.target_starts[indices],
            record=lambda index: self.record(indices[index]),
            more_queries=lambda index: self.more_queries(indices[index]),
        )


def encode_texts(tokenizer: TextTokenizer, texts: Iterable[str]) -> list[np.ndarray]:
    """Returns the ids of each text, int32; equal texts share one array."""
    texts = list(texts)
    unique = list(dict.fromkeys(texts))
    ids: dict[str, np.ndarray] = {}
    for start in range(0, len(unique), _AT_ONCE):
        batch = unique[start : start + _AT_ONCE]
        encodings = tokenizer.backend.encode_batch_fast(batch, add_special_tokens=False)
        for text, encoding in zip(batch, encodings, strict=True):
            ids[text] = np.array(encoding.ids, np.int32)
    return [ids[text] for text in texts]


def encode_target(tokenizer: TextTokenizer, prompt: str, answer: str) -> Query | None:
    """Tokenises an answer as the continuation of a prompt.

    Args:
        tokenizer: the tokenizer.
        prompt: what is asked, without white space at its end.
        answer: the answer; a blank comes before it.

    Returns:
        Ids of prompt, answer and end token, the answer the target; the token of beginning, if there
        is one, is first. None if a token holds the end of the prompt and the start of the answer,
        or if one of them has no tokens.
    """
    ids, offsets = tokenizer.encode_with_offsets(f"{prompt} {answer}")
    is_answer = offsets[:, 1] > len(prompt)
    start = len(ids) - int(is_answer.sum())
    if not 0 < start < len(ids) or offsets[start, 0] < len(prompt) or is_answer[:start].any():
        return None
    begin = tokenizer.begin_ids
    return Query(np.array([*begin, *ids, tokenizer.end_id], np.int32), len(begin) + start)


def question_source(
    records: Records,
    tokenizer: TextTokenizer,
    prompt: Callable[[str], str],
) -> TextSource:
    """Makes the samples of questions, their first answers the targets.

    Args:
        records: the questions.
        tokenizer: the tokenizer.
        prompt: from a question to the text that the answer continues.

    Returns:
        The samples, with the records skipped here added to those skipped before.
    """
    contexts, queries, starts, kept, skipped = [], [], [], [], list(records.skipped)
    encoded = encode_texts(tokenizer, (record.context for record in records.kept))
    encode = functools.cache(functools.partial(encode_target, tokenizer))
    for record, ids in zip(records.kept, encoded, strict=True):
        context = np.concatenate([tokenizer.begin_ids, ids])
        target = encode(prompt(record.question), record.answers[0].strip())
        reason = ""
        if not len(ids):
            reason = "the context has no tokens"
        elif tokenizer.pad_id in context:
            reason = "the context holds the padding token"
        elif target is None:
            reason = f"the tokens of the answer {record.answers[0]!r} cannot be told from the rest"
        elif tokenizer.pad_id in target.ids[:-1]:  # the last one ends the answer
            reason = "the question or its answer holds the padding token"
        if target is None or reason:
            skipped.append(Skipped(record.id, reason))
            continue
        contexts.append(context)
        queries.append(target.ids)
        starts.append(target.target_start)
        kept.append(record)
    return TextSource(
        contexts, queries, np.array(starts, int), tuple(kept).__getitem__, tuple(skipped)
    )


def limit_contexts(
    source: TextSource, max_context_tokens: int | None, long_contexts: str = "skip"
) -> TextSource:
    """Leaves out samples with long contexts.

    Args:
        source: the samples.
        max_context_tokens: longest context allowed; None allows any.
        long_contexts: "skip" leaves longer ones out, "error" refuses them.

    Returns:
        The others, with those left out added to the records skipped before.

    Raises:
        ValueError: a context is too long and `long_contexts` is "error".
    """
    if max_context_tokens is None:
        return source
    lengths = source.context_lengths
    reason = "{} tokens of context, max_context_tokens={}"
    skipped = tuple(
        Skipped(source.record(i).id, reason.format(lengths[i], max_context_tokens))
        for i in np.flatnonzero(lengths > max_context_tokens).tolist()
    )
    if skipped and long_contexts == "error":
        remedy = "allow more, or leave it out with long_contexts='skip'"
        raise ValueError(f"{skipped[0].id}: {skipped[0].reason}; {remedy}.")
    fitting = source.select(np.flatnonzero(lengths <= max_context_tokens))
    return dataclasses.replace(fitting, skipped=source.skipped + skipped)


def chunk_source(
    chunks: np.ndarray,
    context_length: int,
    query: np.ndarray,
    tokenizer: TextTokenizer,
    skipped: tuple[Skipped, ...],
) -> TextSource:
    """Makes the samples of chunks of running text.

    Args:
        chunks: ids [n, length]; what follows `context_length` tokens is the target, or the chunk
            itself if there is nothing.
        context_length: tokens that are written into memory.
        query: ids of what is asked, the same for all chunks; perhaps none.
        tokenizer: the tokenizer.
        skipped: the records left out; chunks that hold the padding token are added to them.
    """
    has_padding = (chunks == tokenizer.pad_id).any(axis=1)
    skipped += tuple(
        Skipped(f"chunk {i}", "the text holds the padding token")
        for i in np.flatnonzero(has_padding)
    )
    chunks = chunks[~has_padding]
    contexts = chunks[:, :context_length]
    targets = chunks[:, context_length:] if chunks.shape[1] > context_length else contexts
    asked = np.broadcast_to(query, (len(chunks), len(query)))
    question = tokenizer.decode(query)

    def record(index: int) -> Record:
        answer = tokenizer.decode(targets[index])
        return Record(str(index), tokenizer.decode(contexts[index]), question, (answer,))

    return TextSource(
        contexts,
        np.concatenate([asked, targets], axis=1).astype(np.int32),
        np.full(len(chunks), len(query)),
        record,
        skipped,
    )


def length_buckets(
    lengths: np.ndarray, count: int = 8, multiple: int = 8, saving: float = 0.05
) -> tuple[int, ...]:
    """Chooses the lengths to pad to that need the least padding.

    Every length costs a compilation, so another one must be worth it.

    Args:
        lengths: int [n], at least one.
        count: how many to choose at most.
        multiple: what they are multiples of; a larger power of two for very different lengths.
        saving: the part of all padded tokens that one more must save.

    Returns:
        The lengths, ascending; the last one holds all.
    """
    rounded, numbers = np.unique(-(-lengths // multiple) * multiple, return_counts=True)
    if len(rounded) > _MAX_CANDIDATES:
        return length_buckets(lengths, count, multiple * 2, saving)
    up_to = np.cumsum(numbers)

    @functools.cache
    def best(last: int, size: int) -> tuple[int, tuple[int, ...]]:
        """Padded tokens of the lengths up to that of index `last`, and the indices chosen."""
        if size == 1:
            return int(up_to[last] * rounded[last]), (last,)
        options = []
        for previous in range(size - 2, last):
            tokens, chosen = best(previous, size - 1)
            tokens += int((up_to[last] - up_to[previous]) * rounded[last])
            options.append((tokens, (*chosen, last)))
        return min(options)

    tokens, chosen = best(len(rounded) - 1, 1)
    for size in range(2, min(count, len(rounded)) + 1):
        fewer_tokens, more = best(len(rounded) - 1, size)
        if fewer_tokens > (1 - saving) * tokens:
            break
        tokens, chosen = fewer_tokens, more
    return tuple(int(length) for length in rounded[list(chosen)])
