"""Language models by their names on a hub: the files that are needed, and no others."""

import pathlib

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.lm.pretrained.hugging_face import (
    INDEX,
    WEIGHTS,
    files_of_index,
    read_config_file,
)
from gradmem_jax.storage.hub import Repository
from gradmem_jax.storage.reading import LARGEST_JSON
from gradmem_jax.tokenizers.fetch import fetch_files, local

_MOST_FILES = 1000  # of weights


def local_config(path: pathlib.Path) -> pathlib.Path:
    """Where the configuration of a model is on this machine, fetched if `path` is on a hub.

    Raises:
        ValueError: it cannot be fetched.
    """
    return local(path, _fetch_config)


def local_model(path: pathlib.Path, with_tokenizer: bool = True) -> pathlib.Path:
    """Where a model is on this machine, fetched if `path` is a name on a hub.

    Args:
        path: the name, or a path of this machine.
        with_tokenizer: whether its tokenizer is fetched too, if it has one.

    Raises:
        ValueError: it cannot be fetched.
    """

    def fetch(repository: Repository) -> pathlib.Path:
        folder = _fetch_config(repository)
        read_config_file(folder / "config.json")  # and refuses it before weights are fetched
        if with_tokenizer:
            fetch_files(repository)
        _fetch_weights(repository)
        return folder

    return local(path, fetch)


def _fetch_weights(repository: Repository) -> None:
    """Fetches the safetensors of a model."""
    name, index = repository.name, repository.get(INDEX, LARGEST_JSON)
    names = [WEIGHTS] if index is None else files_of_index(index)
    strange = [
        file for file in names if not file.endswith(".safetensors") or not file.isprintable()
    ]
    require(not strange, f"{INDEX} of {name} names {shown(strange)}, which are no safetensors.")
    require(
        len(names) <= _MOST_FILES,
        f"{INDEX} of {name} names {len(names)} files; it may name {_MOST_FILES}.",
    )
    for file in names:
        repository.need(file, hint="; weights are read from safetensors only")


def _fetch_config(repository: Repository) -> pathlib.Path:
    """Fetches the config.json of a model, and returns its folder."""
    file = repository.get("config.json", LARGEST_JSON)
    if file is not None:
        return file.parent
    name = repository.name
    ggufs = [str(name._replace(file=x)) for x in repository.files() if x.endswith(".gguf")]
    if ggufs:
        raise ValueError(
            f"{name} has no config.json; name one of its {len(ggufs)} GGUF files, such as "
            f"{one_line(ggufs[0], 200)}."
        )
    return repository.need("config.json").parent
