"""A run on disk, or what experiments.export made of it: its configuration and parameters."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.program import files
from gradmem_jax.checks import require, require_choice
from gradmem_jax.storage import checkpoint
from gradmem_jax.storage.params_file import load_params
from gradmem_jax.trees import Params

# What experiments.export writes in place of checkpoints, and where it describes a pretrained
# language model, whose parameters are among those of the run.
PARAMS, EXPORTED, LM = "params.safetensors", "exported.json", "lm"

# What a run is built from again, by the types that config.json has.
RUN_FIELDS = {
    **dict.fromkeys(("method", "task", "pretrained", "final_split", "write_optimizer.name"), str),
    **dict.fromkeys(("lm", "model", "data", "write_optimizer.arguments"), dict),
    "seed": int,
}


def is_run(path: str) -> bool:
    """Whether there is a run or an exported one, not a pretrained language model."""
    return any((pathlib.Path(path) / name).exists() for name in ("checkpoints", PARAMS))


def run_config(workdir: pathlib.Path) -> ConfigDict:
    """Returns the configuration of a run, with the tokenizer and language model it brings along.

    Raises:
        ValueError: it cannot be read, or names files that are not there.
    """
    path = workdir / "config.json"
    fields = files.read_json(path)
    wrong = [name for name, kind in RUN_FIELDS.items() if not isinstance(_find(fields, name), kind)]
    require(
        not wrong,
        f"{path} is not the configuration of a run: {', '.join(wrong)} missing or of another type; "
        "copy it again, or export the run again.",
    )
    config = ConfigDict(fields)
    if (workdir / LM / "config.json").is_file():
        config.pretrained = str(workdir / LM)
    if (workdir / "tokenizer.json").is_file():
        config.data.tokenizer_path = str(workdir / "tokenizer.json")
    tokenizer = config.data.get("tokenizer_path")
    check_paths(workdir, {"pretrained": config.pretrained, "data.tokenizer_path": tokenizer})
    return config


def _find(fields: Any, name: str) -> Any:
    """A field by its whole name, None if it is not there."""
    for part in name.split("."):
        fields = fields.get(part) if isinstance(fields, dict) else None
    return fields


def check_paths(workdir: pathlib.Path, paths: Mapping[str, str | None]) -> None:
    """Refuses relative paths of a run's config.json that lead nowhere from this folder.

    Args:
        workdir: the folder of the run.
        paths: by name of the field; "" and None are none.
    """
    for name, path in paths.items():
        require(
            not path or os.path.isabs(path) or os.path.exists(path),
            f"there is no {path} in {os.getcwd()}: {workdir / 'config.json'} has {name}={path!r}, "
            "which is relative to the folder that training was started in; start this there too.",
        )


def run_params(workdir: pathlib.Path, checkpoint_name: str = "best") -> tuple[int, Params]:
    """Reads the parameters of a run, or of what experiments.export made of one.

    Args:
        workdir: its folder.
        checkpoint_name: "best", "latest", or a step. An exported run has one step only.

    Returns:
        (step, params).

    Raises:
        ValueError: there is no such run or checkpoint, or it is damaged.
    """
    if not (workdir / PARAMS).exists():
        return checkpoint.restore_params(workdir / "checkpoints", checkpoint_name)
    step = _find(files.read_json(workdir / EXPORTED), "step")
    require(isinstance(step, int), f"{workdir / EXPORTED} has no step; export the run again.")
    require_choice("checkpoint", checkpoint_name, ("best", "latest", str(step)))
    return step, load_params(workdir / PARAMS)
