"""How a run starts: its folder, its tokenizer, and the parameters of step 0."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import hosts, reporting
from experiments.build import build_task, first_params
from experiments.configs.default import get_config
from experiments.open_model import EXPORTED, run_config, run_params
from experiments.reporting import log
from gradmem_jax import sharding
from gradmem_jax.checkpoint import saved_steps
from gradmem_jax.checks import require
from gradmem_jax.data.text_task import read_tokenizer
from gradmem_jax.data.text_tokenizer import TextTokenizer
from gradmem_jax.lm.vocabulary import change_vocabulary
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.training import TrainState, init_state
from gradmem_jax.trees import Params


def start_state(config: ConfigDict, model: MemoryModel, optimizer: Any) -> TrainState:
    """Returns the state of step 0.

    If `config.init_from` names a run, its parameters are taken; if that run had another method,
    those of its language model. What it has not, adapters of WRITE or words for example, starts
    anew.
    """
    if not config.init_from:
        return init_state(first_params(config, model), optimizer, config.frozen)
    folder = pathlib.Path(config.init_from)
    step, earlier = run_params(folder, config.init_checkpoint)
    log.info("starting from step %d of %s", step, folder)
    run = run_config(folder)
    if run.method != config.method:
        earlier = {"lm": earlier["lm"]}
    draw = functools.partial(model.init, jax.random.key(config.seed))
    wanted = jax.eval_shape(draw)
    _check_fit(config, run, earlier, wanted, _shape_beside_vocabulary)
    earlier = _with_our_tokens(config, run, earlier, draw)
    _check_fit(config, run, earlier, wanted, lambda path, x: x.shape)
    new = sorted(wanted.keys() - earlier.keys())
    if new:
        log.info("%s has no %s: they start anew", folder, ", ".join(new))
    params = draw(earlier["lm"]) | earlier
    return init_state(params, optimizer, config.frozen)


def _shape_beside_vocabulary(path: Any, x: Any) -> tuple[int, ...]:
    """The shape of a parameter without the axis of token ids."""
    axes = sharding.logical_axes(sharding.path_name(path), x.ndim)
    return tuple(n for n, axis in zip(x.shape, axes, strict=True) if axis != "vocab")


def _check_fit(
    config: ConfigDict,
    run: ConfigDict,
    earlier: Params,
    wanted: Params,
    shape: Callable[[Any, Any], Any],
) -> None:
    """Refuses parameters of the run `config.init_from` whose shapes are not those wanted."""
    shapes, wanted_shapes = (jax.tree.map_with_path(shape, tree) for tree in (earlier, wanted))
    wrong = [name for name in earlier if shapes[name] != wanted_shapes.get(name)]
    ours = flat_fields(config)
    different = [
        f"{name}={value!r}"
        for name, value in flat_fields(run).items()
        if name.startswith(("lm.", "model.")) and name in ours and value != ours[name]
    ]
    require(
        not wrong,
        f"the parameters {wrong} of init_from={config.init_from!r} do not fit this model; lm, "
        "model and the vocabulary must be configured alike. What that run has otherwise: "
        f"{', '.join(different) or 'its vocabulary'}.",
    )


def _with_our_tokens(
    config: ConfigDict, run: ConfigDict, earlier: Params, draw: Callable[[], Params]
) -> Params:
    """Returns parameters of a run configured by `run` with the ids of this run's tokens."""
    path = run.data.get("tokenizer_path") or run.pretrained
    tokenizer = build_task(config).tokenizer
    if not path or not isinstance(tokenizer, TextTokenizer):
        return earlier
    tokens, wanted = (t.backend.get_vocab() for t in (read_tokenizer(path), tokenizer))
    if tokens == wanted:
        return earlier
    new = sorted(wanted.keys() - tokens.keys())
    text = "%s has other ids of tokens; new are %d: %s"
    log.info(text, config.init_from, len(new), " ".join(new[:20]))
    drawn = draw()
    return change_vocabulary(earlier, {n: drawn[n] for n in earlier}, tokens, wanted)


def flat_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields of a configuration by their whole names, with the values that config.json has."""
    return reporting.flatten(reporting.to_json(config.to_dict()))


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
    earlier = reporting.flatten(reporting.read_json(path)) if path.exists() else {}
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
    reporting.write_json(path, config.to_dict())


def save_tokenizer(workdir: pathlib.Path, task: Any) -> None:
    """Keeps a tokenizer made of the task's texts, so that the run can be asked without them."""
    if isinstance(task.tokenizer, TextTokenizer) and not task.tokenizer_path:
        task.tokenizer.save(workdir / "tokenizer.json")
