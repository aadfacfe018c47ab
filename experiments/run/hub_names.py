"""Names on a hub in a run's configuration: a run keeps the commits that it began with."""

import pathlib

from ml_collections import ConfigDict

from experiments.program import files
from gradmem_jax.storage import hub

_FIELDS = ("pretrained", "data.tokenizer_path")


def with_commits(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """Returns a configuration whose names on a hub have commits.

    Args:
        config: see experiments/configs/default.py.
        workdir: the folder of the run. If it began already, names without a revision have its
            commits, whatever the hub has by now.

    Raises:
        ValueError: the hub has no such model, or cannot be asked.
    """
    if not any(_on_hub(config, name) for name in _FIELDS):
        return config
    path = workdir / "config.json"
    earlier = files.flatten(files.read_json(path)) if path.exists() else {}
    config = config.copy_and_resolve_references()
    for name in _FIELDS:
        if _on_hub(config, name):
            group, field = _place(config, name)
            before = earlier.get(name)
            group[field] = hub.pinned(group[field], before if isinstance(before, str) else "")
    return config


def _on_hub(config: ConfigDict, name: str) -> bool:
    group, field = _place(config, name)
    text = group.get(field)
    return isinstance(text, str) and hub.name_on_hub(text) is not None


def _place(config: ConfigDict, name: str) -> tuple[ConfigDict, str]:
    """The group of a field, and its own name."""
    group, _, field = name.rpartition(".")
    return (config[group] if group else config), field
