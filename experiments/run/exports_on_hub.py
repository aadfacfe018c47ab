"""What experiments.export made of a run, by its name on a hub."""

import pathlib

from experiments.run.exported import FILES
from experiments.run.workdir import EXPORTED, PARAMS, is_run
from gradmem_jax.storage.hub import Repository, name_on_hub
from gradmem_jax.storage.reading import LARGEST_JSON


def find_run(path: str | pathlib.Path) -> pathlib.Path | None:
    """The folder of a run, begun, finished or exported; fetched if it is an export on a hub.

    Args:
        path: its folder, or `org/name@revision`.

    Returns:
        None if there is no run; what is there may be a pretrained language model.

    Raises:
        ValueError: the hub has no such repository, or cannot be asked, or an export there lacks a
            file.
    """
    name = name_on_hub(path)
    if name is None:
        return pathlib.Path(path) if is_run(path) else None
    repository = Repository(name)
    if name.file or repository.get(EXPORTED, LARGEST_JSON) is None:
        return None
    for file in FILES:
        repository.get(file, None if file == PARAMS else LARGEST_JSON)
    return repository.need("config.json").parent
