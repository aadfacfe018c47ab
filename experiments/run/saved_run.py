"""A run on disk, or what experiments.export made of it: its plan, tokenizer and parameters."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.default import get_config
from experiments.program import files
from experiments.run.build import build
from experiments.run.exported import read_step
from experiments.run.exports_on_hub import find_run
from experiments.run.plan import RunPlan
from experiments.run.stored_sizes import Shapes
from experiments.run.workdir import EXPORTED, LM, PARAMS
from gradmem_jax.checks import require, require_choice
from gradmem_jax.data.task import Tokenizer
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage import checkpoint, params_file
from gradmem_jax.storage.hub import name_on_hub
from gradmem_jax.storage.params_file import load_params
from gradmem_jax.trees import Params, named_leaves

# What a run is built from again, by the types that config.json has.
_FIELDS = {
    **dict.fromkeys(("method", "task", "pretrained", "final_split", "write_optimizer.name"), str),
    **dict.fromkeys(("lm", "model", "data", "write_optimizer.arguments"), dict),
    "seed": int,
}
# Groups of fields of which a run of another version of the code may have others.
_GROUPS = ("curriculum", "mesh", "optimizer")
_MOST_LEVELS = 8  # of groups of fields; a configuration has four


class SavedRun:
    """A run on disk, or what experiments.export made of it.

    Everything is read when it is asked for.

    Attributes:
        folder: its folder.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads nothing yet."""
        self.folder = folder

    @functools.cached_property
    def fields(self) -> dict[str, Any]:
        """Its configuration, with the paths of the tokenizer and language model it brings along.

        Raises:
            ValueError: it cannot be read, or names files that are not there.
        """
        if (self.folder / EXPORTED).exists():
            read_step(self.folder)  # and sees that all files are of one export
        path = self.folder / "config.json"
        fields = files.read_json(path)
        check_names(path, fields)
        wrong = [
            name for name, kind in _FIELDS.items() if not isinstance(_find(fields, name), kind)
        ]
        if not wrong:
            wrong = [name for name in _GROUPS if not isinstance(fields.get(name, {}), dict)]
        require(
            not wrong,
            f"{path} is not the configuration of a run: {', '.join(wrong)} missing or of another "
            "type; copy it again, or export the run again.",
        )
        if (self.folder / LM / "config.json").is_file():
            fields["pretrained"] = str(self.folder / LM)
        if (self.folder / "tokenizer.json").is_file():
            is_whole = (self.folder / "tokenizer_config.json").is_file()
            tokenizer = self.folder if is_whole else self.folder / "tokenizer.json"
            fields["data"]["tokenizer_path"] = str(tokenizer)
        paths = {name: _find(fields, name) for name in ("pretrained", "data.tokenizer_path")}
        check_paths(self.folder, paths)
        return fields

    @functools.cached_property
    def plan(self) -> RunPlan:
        """What was trained, and how; fields from after its time have their defaults.

        Raises:
            ValueError: see `fields` and `build`; or it has no parameters, or others.
        """
        fields = self.fields
        default = get_config(fields["method"], fields["task"], bool(fields["pretrained"])).to_dict()
        groups = {
            group: {name: fields.get(group, {}).get(name, x) for name, x in default[group].items()}
            for group in _GROUPS
        }
        ours = {name: fields.get(name, x) for name, x in default.items()} | groups
        return build(ConfigDict(_with_tuples(ours)), self._stored_shapes())

    def _stored_shapes(self) -> Shapes:
        """Shapes by name of its parameters, those of the last checkpoint."""
        if (self.folder / PARAMS).exists():
            return params_file.stored_shapes(self.folder / PARAMS)
        tree = checkpoint.stored_shapes(self.folder / "checkpoints")
        return {name: tuple(x.shape) for name, x in named_leaves(tree).items()}

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.plan.target.task.tokenizer

    def params(self, checkpoint_name: str = "best") -> tuple[int, Params]:
        """Reads parameters.

        Args:
            checkpoint_name: "best", "latest", or a step. An exported run has one step only.

        Returns:
            (step, params).

        Raises:
            ValueError: there is no such run or checkpoint, or it is damaged.
        """
        if not (self.folder / PARAMS).exists():
            return checkpoint.restore_params(self.folder / "checkpoints", checkpoint_name)
        step = read_step(self.folder)
        require_choice("checkpoint", checkpoint_name, ("best", "latest", str(step)))
        return step, load_params(self.folder / PARAMS)


def run_and_results(workdir: str, out: str | None, file_name: str) -> tuple[SavedRun, pathlib.Path]:
    """Opens the run that --workdir names, and sees that results about it can be written.

    Args:
        workdir: its folder, or the name of an export on a hub.
        out: --out, the path of the results without suffix; by default they go into the folder.
        file_name: how they are called there, without suffix.

    Returns:
        The run, and the path of a JSON file.

    Raises:
        ValueError: an export on a hub needs --out; the run's data are not there; or the file cannot
            be written.
    """
    require(
        name_on_hub(workdir) is None or bool(out),
        f"--workdir={workdir} is on a hub: say with --out where results are to be written.",
    )
    run = SavedRun(find_run(workdir) or pathlib.Path(workdir))
    check_paths(run.folder, {"data.data_dir": run.fields["data"].get("data_dir")})
    path = files.with_ending(pathlib.Path(out or run.folder / file_name), ".json")
    return run, files.output_file("out", path)


def check_names(path: pathlib.Path, fields: Any) -> None:
    """Refuses names that no field has, and groups in groups in groups."""
    level = [fields]
    for _ in range(_MOST_LEVELS):
        groups = [group for group in level if isinstance(group, dict)]
        for name in (name for group in groups for name in group):
            require(
                name.isidentifier(),
                f"{path} is not the configuration of a run: it has a field {shown(name)}; copy it "
                "again, or export the run again.",
            )
        inner = [x for group in groups for x in group.values()]
        level = inner + [x for items in level if isinstance(items, list) for x in items]
    require(
        not level,
        f"{path} is not the configuration of a run: it has groups in groups, {_MOST_LEVELS} deep; "
        "copy it again, or export the run again.",
    )


def _find(fields: Any, name: str) -> Any:
    """A field by its whole name, None if it is not there."""
    for part in name.split("."):
        fields = fields.get(part) if isinstance(fields, dict) else None
    return fields


def _with_tuples(value: Any) -> Any:
    """What JSON reads, with tuples where it has lists."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def check_paths(workdir: pathlib.Path, paths: Mapping[str, str | None]) -> None:
    """Refuses relative paths of a run's config.json that lead nowhere from this folder.

    Args:
        workdir: the folder of the run.
        paths: by name of the field; "" and None are none.
    """
    for name, path in paths.items():
        on_hub = name_on_hub(path) if path else None
        is_known = on_hub is not None and on_hub.is_pinned
        require(
            not path or is_known or os.path.isabs(path) or os.path.exists(path),
            f"there is no {path} in {os.getcwd()}: {workdir / 'config.json'} has {name}={path!r}, "
            "which is relative to the folder that training was started in; start this there too.",
        )
