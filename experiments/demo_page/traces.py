"""Texts written into memory step by step, with the memory and the losses after each step."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers.contexts import Context, bucket, encode_context, unknown_words
from experiments.answers.open_model import OpenModel
from experiments.answers.writing import describe_sizes
from experiments.demo_page.kept import Kept
from experiments.demo_page.models import PageModel
from experiments.demo_page.tokens import Token, split_tokens
from gradmem_jax.checks import require, require_integer
from gradmem_jax.memory.gradmem import GradMem
from gradmem_jax.memory.interface import Memory
from gradmem_jax.memory.programs import program
from gradmem_jax.storage.memory_file import StoredContext, load_memory, read_header, save_memory
from gradmem_jax.trees import Params

_MOST_TRACES = 16
_TOO_LONG = "shorten it, or write its parts one after the other with Write on"


class Text(NamedTuple):
    """A text as a model takes it.

    Attributes:
        ids: int32 [S].
        tokens: S of them, what each id stands for.
    """

    ids: np.ndarray
    tokens: tuple[Token, ...]


class Step(NamedTuple):
    """What is there after some steps of a WRITE.

    Attributes:
        memory: of one sample, leaves [1, ...].
        losses: of each text float [S], loss of its tokens given this memory.
    """

    memory: Memory
    losses: tuple[np.ndarray, ...]


@dataclasses.dataclass(eq=False)
class Trace:
    """A WRITE, step by step; it grows while it runs.

    Attributes:
        key: what tells it from others.
        model: the model that writes.
        texts: all that was written into this memory; the last one is written here.
        num_steps: K.
        control: the memory before anything was written.
        earlier: what is known of the memory that this WRITE goes on from, if it does.
        steps: those that are done, the first one before any update.
        seconds: they took.
        notes: what is to be said of the texts.
        stored: what a file says of it, if it was loaded.
        knows_all_texts: whether `texts` is all that is in memory; a file has no texts in it.
    """

    key: Hashable
    model: PageModel
    texts: tuple[Text, ...]
    num_steps: int
    control: Memory
    earlier: StoredContext | None = None
    steps: list[Step] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    notes: str = ""
    stored: StoredContext | None = None
    knows_all_texts: bool = True

    @property
    def last(self) -> int:
        """The number of the last step that is done."""
        return len(self.steps) - 1

    @property
    def write_losses(self) -> list[float]:
        """WRITE loss of the last text after each step, in nats a token."""
        losses = [float(step.losses[-1].sum()) for step in self.steps if step.losses]
        count = self._num_scored(self.texts[-1:])
        return [loss / count for loss in losses]

    def _num_scored(self, texts: Sequence[Text]) -> int:
        """How many tokens of some texts have a loss; 1 if none has."""
        model = self.model.opened.model
        counts = [model.scored_tokens(jnp.asarray(text.ids)).sum() for text in texts]
        return max(sum(map(int, counts)), 1)

    @property
    def context(self) -> StoredContext:
        """What its file says of it."""
        if self.stored is not None:
            return self.stored
        count, rows = len(self.texts[-1].ids), (tuple(self.write_losses[:-1]),)
        losses = np.concatenate(self.steps[-1].losses)
        final = float(losses.sum()) / self._num_scored(self.texts)
        if self.earlier is None:
            return StoredContext("text", count, rows, final)
        before = self.earlier.num_tokens
        whole = None if before is None else before + count
        return StoredContext("text", whole, self.earlier.write_losses + rows, final)

    @property
    def sizes(self) -> dict[str, int]:
        """Floats and bytes of the memory and of a key-value cache, see `describe_sizes`."""
        return describe_sizes(self.model.opened, self.steps[0].memory, self.context)


class Traces:
    """All WRITEs of the page; none is done twice as long as it is kept."""

    def __init__(self) -> None:
        """Keeps none yet."""
        self._kept: Kept[Trace] = Kept(_MOST_TRACES)

    def keep_of(self, is_open: Callable[[PageModel], bool]) -> None:
        """Gives up what other models wrote, for it keeps their parameters alive."""

        def is_old(trace: Trace) -> bool:
            return not is_open(trace.model)

        self._kept.drop(is_old)

    def write(
        self, model: PageModel, text: str, num_steps: int, start: Trace | None = None
    ) -> Iterator[Trace]:
        """Writes a text, and yields its trace whenever another step is done.

        Args:
            model: the model.
            text: the text.
            num_steps: K.
            start: whose last memory to write on; an empty memory by default.

        Raises:
            ValueError: the text is empty or too long, K is wrong, or `start` is of another model.
        """
        num_steps = require_integer("K", num_steps, 0)
        require(num_steps <= model.most_steps, f"K is at most {model.most_steps} here.")
        require(
            start is None or start.model.key == model.key,
            "this memory is of another model; write the text anew.",
        )
        before = None if start is None else (start.key, start.last)
        key = (model.key, before, text, num_steps)
        found = self._kept.get(key)
        if found is not None:
            yield found
            return
        encoded, notes = encode(model, text)
        trace = _begin(key, model, encoded, num_steps, start)
        trace.notes = notes
        started = time.monotonic()
        for step in _steps(trace, start):
            trace.steps.append(step)
            trace.seconds = time.monotonic() - started
            if trace.last == num_steps:
                self._kept.put(key, trace)
            yield trace


def encode(model: PageModel, text: str) -> tuple[Text, str]:
    """Turns a text into ids; returns what is to be said of its words, too.

    Raises:
        ValueError: it is empty or too long.
    """
    require(bool(text.strip()), "There is no text to write.")
    opened = model.opened
    ids = encode_context(
        Context("The text", text),
        opened.tokenizer,
        pad_id=opened.model.config.pad_id,
        limit=opened.limit,
        if_too_long=_TOO_LONG,
    )
    tokens = split_tokens(opened.tokenizer, text, ids)
    return Text(ids, tokens), unknown_words(text, opened.tokenizer)


def _begin(
    key: Hashable, model: PageModel, text: Text, num_steps: int, start: Trace | None
) -> Trace:
    """A trace without steps."""
    if start is None:
        return Trace(key, model, (text,), num_steps, empty_memory(model.opened, text.ids))
    texts = (*start.texts, text)
    return Trace(
        *(key, model, texts, num_steps, start.control, start.context),
        knows_all_texts=start.knows_all_texts,
    )


def empty_memory(opened: OpenModel, ids: np.ndarray) -> Memory:
    """The memory of K = 0 for ids [S], of one sample."""
    memory, _ = opened.model.write_memory(opened.params, _row(opened, ids), num_steps=0)
    return jax.device_get(memory)


def _row(opened: OpenModel, ids: np.ndarray) -> np.ndarray:
    """Ids [S] as a batch of one, padded to one of few lengths."""
    config = opened.model.config
    row = np.full((1, bucket(len(ids), opened.limit)), config.pad_id, np.int32)
    row[0, : len(ids)] = ids
    return row


def _steps(trace: Trace, start: Trace | None) -> Iterator[Step]:
    """Writes the last text of a trace."""
    opened = trace.model.opened
    ids = [_row(opened, text.ids) for text in trace.texts]
    first = None if start is None else jax.tree.map(jnp.asarray, start.steps[-1].memory)
    measure = program(_token_losses, opened.model)
    for memory in _memories(opened, ids[-1], first, trace.num_steps):
        losses = [measure(opened.params, memory, each) for each in ids]
        memory, rows = jax.device_get((memory, losses))
        pairs = zip(rows, trace.texts, strict=True)
        memory = opened.model.without_padding(memory)
        yield Step(memory, tuple(row[0, : len(text.ids)] for row, text in pairs))


def _memories(
    opened: OpenModel, ids: np.ndarray, memory: Memory | None, num_steps: int
) -> Iterator[Memory]:
    """The memory after 0, 1, ... K steps of WRITE."""
    model = opened.model
    # A step goes on from the memory before it, unless an optimizer or a recurrence carries more.
    goes_on = isinstance(model, GradMem) and model.write_optimizer is None
    start = memory
    for count in range(num_steps + 1):
        memory, _ = model.write_memory(
            opened.params,
            ids,
            memory=memory if goes_on else start,
            num_steps=np.array([min(count, 1) if goes_on else count]),
            max_steps=1 if goes_on else num_steps,
        )
        yield memory


def _token_losses(model: Any, params: Params, memory: Memory, ids: jax.Array) -> jax.Array:
    return model.write_token_losses(params, memory, ids)


def save(path: str | pathlib.Path, trace: Trace) -> None:
    """Writes the last memory of a trace to a file that experiments.ask reads."""
    model = trace.model
    save_memory(
        path,
        trace.steps[-1].memory,
        model.opened.model,
        model.opened.params,
        contexts=[trace.context],
        notes=model.opened.notes,
        fingerprint=model.fingerprint,
    )


def load(path: str | pathlib.Path, model: PageModel) -> Trace:
    """Reads the first memory of a file that this model wrote.

    Raises:
        ValueError: the file is damaged, none, or of another model.
    """
    header = read_header(path)
    opened = model.opened
    memory = load_memory(
        path, opened.model, opened.params, slice(0, 1), fingerprint=model.fingerprint
    )
    stored = header.contexts[0]
    some_token = np.array([(opened.model.config.pad_id + 1) % opened.model.config.lm.vocab_size])
    control = empty_memory(opened, some_token)
    trace = Trace(
        *((model.key, header.checksums[0]), model, (), 0, control),
        stored=stored,
        knows_all_texts=False,
    )
    trace.steps.append(Step(jax.device_get(memory), ()))
    if len(header.contexts) > 1:
        trace.notes = f"The file holds {len(header.contexts)} memories; this is the first one."
    return trace
