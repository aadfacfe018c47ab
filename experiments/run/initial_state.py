"""Parameters and optimizer state of step 0, drawn or taken from another run."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.program.console import log
from experiments.run.build import build_task, first_params
from experiments.run.saved_run import run_config, run_params
from experiments.run.workdir import flat_fields
from gradmem_jax import trees
from gradmem_jax.checks import require
from gradmem_jax.data.text_task import read_tokenizer
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.parallel import sharding
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer
from gradmem_jax.training.step import TrainState, init_state
from gradmem_jax.training.vocabulary import change_vocabulary
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
    axes = sharding.logical_axes(trees.path_name(path), x.ndim)
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
