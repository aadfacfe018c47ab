"""Memory files, contexts and data of strangers."""

import pathlib
from collections.abc import Callable, Iterator

from tests.hostile import contexts, data, memories


def cases(folder: pathlib.Path) -> Iterator[tuple[str, Callable[[], object], bool]]:
    """Yields inputs by name, what opens them, and whether they are sound."""
    yield from memories.cases(folder / "memories")
    yield from contexts.cases(folder / "contexts")
    yield from data.cases(folder / "data")
