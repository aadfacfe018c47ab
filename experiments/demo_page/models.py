"""The models of the page: which there are, and each opened when it is asked for."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from experiments.answers.open_model import NUM_MEMORY_TOKENS, OpenModel, open_model, resize_memory
from experiments.demo_page.examples import Examples, examples_of
from experiments.demo_page.kept import Kept
from experiments.program import files
from experiments.run.exports_on_hub import find_run
from experiments.run.workdir import is_run
from gradmem_jax.checks import require
from gradmem_jax.lm.transformer import TransformerConfig
from gradmem_jax.memory.full_context import FullContext, FullContextConfig
from gradmem_jax.memory.gradmem import GradMem
from gradmem_jax.storage import hub
from gradmem_jax.storage.fingerprint import Fingerprint, take_fingerprint

FOLDER = pathlib.Path(__file__).parents[1] / "models"
_MOST_OPEN = 2  # paths
_MOST_SIZES = 8  # values of m of a path; they share the language model's parameters
_MOST_STEPS = 400


@dataclasses.dataclass(frozen=True, eq=False)
class PageModel:
    """An opened model, and what the page says of it.

    Attributes:
        key: what tells it from others.
        opened: the model.
        task: what it was trained for; "" if it is a pretrained one.
        was_pretrained: whether its language model learned from whole texts.
    """

    key: tuple[str, int | None]
    opened: OpenModel
    task: str
    was_pretrained: bool

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What ties memory files to it."""
        return take_fingerprint(self.opened.model, self.opened.params)

    @functools.cached_property
    def full_context(self) -> OpenModel | None:
        """The same language model with the whole text before it, None if it keeps no cache."""
        config = self.opened.model.config
        if not isinstance(config.lm, TransformerConfig) or config.lm.keeps != "keys and values":
            return None
        if isinstance(self.opened.model, FullContext):
            return None
        model = FullContext(FullContextConfig(lm=config.lm, pad_id=config.pad_id))
        return self.opened._replace(model=model, params={"lm": self.opened.params["lm"]})

    @property
    def num_write_steps(self) -> int:
        """K that it is used with."""
        return self.opened.model.config.num_write_steps

    @property
    def most_steps(self) -> int:
        """The largest K that makes sense to try."""
        if self.opened.model.one_pass:
            return 1
        return min(max(8, 4 * self.num_write_steps), max(_MOST_STEPS, self.num_write_steps))

    @property
    def num_memory_tokens(self) -> int | None:
        """m, None if its memory is no row of vectors."""
        return getattr(self.opened.model.config, "num_memory_tokens", None)

    @property
    def examples(self) -> Examples:
        """Texts and questions to try it with."""
        return examples_of(self.task)

    @property
    def is_trained(self) -> bool:
        """Whether it learned to write; its memory has the size that it learned then."""
        return bool(self.task)

    def describe(self) -> str:
        """What it is, in a line."""
        model, lm = self.opened.model, self.opened.model.config.lm
        kind = type(lm).__name__.removesuffix("Config")
        size = f"{kind}, width {lm.width}, layers: {lm.num_layers}, tokens: {lm.vocab_size:,}."
        if not self.is_trained:
            return f"{size} It never learned to write or to answer from memory."
        what = "GradMem" if type(model) is GradMem else type(model).__name__
        return f"{what}, trained on {self.task} with K = {self.num_write_steps}. {size}"


def model_paths(paths: Sequence[str] = ()) -> list[str]:
    """The models that are named, or else those of the repository.

    Raises:
        ValueError: there is none, or one of them is not there.
    """
    paths = list(paths) or [str(path) for path in sorted(FOLDER.iterdir()) if is_run(path)]
    require(bool(paths), f"{FOLDER} has no models; name one with --model.")
    for path in paths:
        require(
            os.path.exists(path) or hub.name_on_hub(path) is not None,
            f"there is no model {path}; name a run's workdir or a model's files.",
        )
    return paths


class Models:
    """Models by the names that the page lists."""

    def __init__(self, paths: Sequence[str] = ()):
        """Opens the first one.

        Args:
            paths: runs, exported runs or pretrained models; by default those of the repository.

        Raises:
            ValueError: there is none, or the first one cannot be opened.
        """
        paths = model_paths(paths)
        short = [pathlib.Path(path).name for path in paths]
        self._paths = {
            (name if short.count(name) == 1 else path): path
            for name, path in zip(short, paths, strict=True)
        }
        self._open: Kept[_Opened] = Kept(_MOST_OPEN)
        self.get(self.names[0])

    @property
    def names(self) -> list[str]:
        """All names."""
        return list(self._paths)

    def get(self, name: str, num_memory_tokens: int | None = None) -> PageModel:
        """Opens a model, or returns it if it is open.

        Args:
            name: one of `names`.
            num_memory_tokens: m of a model that was never trained; others have their own.

        Raises:
            ValueError: there is no such name, or the model cannot be opened.
        """
        require(name in self._paths, "there is no such model; choose one of the list.")
        path = self._paths[name]
        found = self._open.get(path)
        if found is None:
            found = self._open.put(path, _Opened(_open(path), Kept(_MOST_SIZES)))
        model = found.model
        if model.is_trained or num_memory_tokens in (None, model.num_memory_tokens):
            return model
        resized = found.sizes.get(num_memory_tokens)
        if resized is None:
            opened = resize_memory(model.opened, num_memory_tokens)
            resized = dataclasses.replace(model, key=(path, num_memory_tokens), opened=opened)
            found.sizes.put(num_memory_tokens, resized)
        return resized

    def is_open(self, model: PageModel) -> bool:
        """Whether a model is of a path that is kept open."""
        return model.key[0] in self._open


class _Opened(NamedTuple):
    """A path's model, and the same model with other m."""

    model: PageModel
    sizes: Kept[PageModel]


def _open(path: str) -> PageModel:
    run = find_run(path)
    if run is None:
        return PageModel((path, NUM_MEMORY_TOKENS), open_model(path), "", True)
    fields = files.read_json(run / "config.json")
    return PageModel((path, None), open_model(path), fields["task"], bool(fields["pretrained"]))
