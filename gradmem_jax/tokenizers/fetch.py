"""Tokenizers, and the files that hold one, by their names on a hub."""

import pathlib
import re
from collections.abc import Callable

from gradmem_jax.storage.hub import Repository, name_on_hub
from gradmem_jax.storage.reading import LARGEST_JSON

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# The first kind that is there is read.
KINDS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
TOKENIZER_FILES = (*BESIDE, *(name for kind in KINDS for name in kind))

_FIRST_OF = re.compile(r"-00001-of-(\d{5})\.gguf$")


def fetch_files(repository: Repository) -> None:
    """Fetches the files of a tokenizer that stand beside a model, if there are any."""
    for name in BESIDE:
        repository.get(name, LARGEST_JSON)
    for kind in KINDS:
        if all([repository.get(name, LARGEST_JSON) for name in kind]):
            return


def local_tokenizer(path: pathlib.Path) -> pathlib.Path:
    """Where a tokenizer is on this machine, fetched if `path` is a name on a hub.

    Raises:
        ValueError: it cannot be fetched.
    """

    def fetch(repository: Repository) -> pathlib.Path:
        config = repository.need("config.json", LARGEST_JSON)
        fetch_files(repository)
        return config.parent

    return local(path, fetch)


def local(path: pathlib.Path, fetch: Callable[[Repository], pathlib.Path]) -> pathlib.Path:
    """Where something is on this machine, fetched if `path` is a name on a hub.

    Args:
        path: the name, or a path of this machine.
        fetch: fetches what is needed of a model as Hugging Face stores it, and returns its folder.
    """
    name = name_on_hub(path)
    if name is None:
        return path
    repository = Repository(name)
    return fetch_gguf(repository) if name.file else fetch(repository)


def fetch_gguf(repository: Repository) -> pathlib.Path:
    """Fetches a GGUF file, with its other parts if it has any, and returns where the first is."""
    file = repository.name.file
    first = repository.need(file)
    if parts := _FIRST_OF.search(file):
        for i in range(2, int(parts[1]) + 1):
            repository.need(f"{file[: parts.start()]}-{i:05d}-of-{parts[1]}.gguf")
    return first
