"""The folder of a run: its config.json and its tokenizer."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.default import get_config
from experiments.program import files, hosts
from experiments.run.saved_run import EXPORTED
from gradmem_jax.checks import require
from gradmem_jax.storage.checkpoint import saved_steps
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer


def flat_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields of a configuration by their whole names, with the values that config.json has."""
    return files.flatten(files.to_json(config.to_dict()))


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes config.json, or refuses a workdir of an export, or of another configuration.

    A run that began before a field was there has the field's default. What a start left that came
    to no checkpoint is overwritten.
    """
    require(
        not (workdir / EXPORTED).exists(),
        f"{workdir} is what experiments.export made of a run; choose another --workdir, and start "
        f"from it with --config.init_from={workdir}.",
    )
    path = workdir / "config.json"
    earlier = files.flatten(files.read_json(path)) if path.exists() else {}
    steps = saved_steps(workdir / "checkpoints")
    has_results = bool(steps) or (workdir / "metrics.json").exists()
    if earlier and has_results:
        defaults = get_config(config.method, config.task, bool(config.pretrained))
        current, default = flat_fields(config), flat_fields(defaults)
        ignored = (
            *("num_steps", "final_num_write_steps", "stop_at_exact_match", "skip_nonfinite"),
            *("init_from", "init_checkpoint", "mesh", "num_micro_batches", "cpu_devices"),
        )
        different = [
            name
            for name in {*earlier, *current}
            if name.partition(".")[0] not in ignored
            and earlier.get(name, default.get(name)) != current.get(name)
        ]
        require(
            not different,
            f"{workdir} holds a run with other values of {sorted(different)}; choose another "
            "--workdir, or the same configuration to go on.",
        )
    require(
        not steps or config.num_steps >= steps[-1],
        f"num_steps={config.num_steps} is less than the {max(steps, default=0)} steps that "
        f"{workdir} was trained for; give so many or more, or choose another --workdir.",
    )
    if not hosts.is_first():
        return
    made_tokenizer = not (earlier.get("data.tokenizer_path") or earlier.get("pretrained"))
    if earlier and not has_results and made_tokenizer:
        (workdir / "tokenizer.json").unlink(missing_ok=True)
    files.write_json(path, config.to_dict())


def save_tokenizer(workdir: pathlib.Path, task: Any) -> None:
    """Keeps a tokenizer made of the task's texts, so that the run can be asked without them."""
    if isinstance(task.tokenizer, TextTokenizer) and not task.tokenizer_path:
        task.tokenizer.save(workdir / "tokenizer.json")
