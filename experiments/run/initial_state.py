"""Parameters and optimizer state of step 0, drawn or taken from another run."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.program import files
from experiments.program.console import log
from experiments.run.plan import RunPlan
from experiments.run.saved_run import SavedRun
from gradmem_jax import trees
from gradmem_jax.checks import require
from gradmem_jax.data.text_task import read_tokenizer
from gradmem_jax.lm.pretrained.load import load_pretrained
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.parallel import sharding
from gradmem_jax.storage.fingerprint import take_fingerprint
from gradmem_jax.tokenizers.text_tokenizer import TextTokenizer
from gradmem_jax.training.optimizer import OptimizerConfig, make_optimizer
from gradmem_jax.training.step import TrainState, init_state
from gradmem_jax.training.vocabulary import change_vocabulary
from gradmem_jax.trees import Params

_Shape = Callable[[Any, Any], tuple[int, ...]]  # of a path and an array


def start_state(plan: RunPlan) -> TrainState:
    """Returns the state of step 0."""
    return init_state(start_params(plan), make_optimizer(plan.optimizer), plan.frozen)


def state_shapes(
    model: MemoryModel, optimizer: OptimizerConfig, frozen: Sequence[str] = ()
) -> TrainState:
    """The shapes and dtypes of a training state, for which nothing is drawn or read."""

    def draw() -> TrainState:
        return init_state(model.init(jax.random.key(0)), make_optimizer(optimizer), frozen)

    return jax.eval_shape(draw)


def start_params(plan: RunPlan) -> Params:
    """Returns the parameters of step 0.

    If `plan.start.init_from` names a run, its parameters are taken; if that run had another method,
    those of its language model. What it has not, adapters of WRITE or words for example, starts
    anew.
    """
    if not plan.start.init_from:
        return draw_params(plan)
    run = SavedRun(pathlib.Path(plan.start.init_from))
    step, earlier = run.params(plan.start.init_checkpoint)
    log.info("starting from step %d of %s", step, run.folder)
    if run.fields["method"] != plan.method:
        require("lm" in earlier, f"{run.folder} has no parameters of a language model.")
        earlier = {"lm": earlier["lm"]}
    draw = functools.partial(plan.target.model.init, jax.random.key(plan.seed))
    wanted = jax.eval_shape(draw)
    _check_fit(plan, run, earlier, wanted, _shape_beside_vocabulary)
    earlier = _with_our_tokens(plan, run, earlier, draw)
    _check_fit(plan, run, earlier, wanted, _shape)
    new = sorted(wanted.keys() - earlier.keys())
    if new:
        log.info("%s has no %s: they start anew", run.folder, ", ".join(new))
    return draw(earlier["lm"]) | earlier


def sample_seed(plan: RunPlan, params: Params) -> int | None:
    """The seed of the training samples and of their order; None is that of the run.

    A run that starts from another one would see the first samples of that one again, so its own
    depend on the parameters too that it starts from.

    Args:
        plan: of the run.
        params: of step 0.
    """
    if not plan.start.init_from:
        return None
    weights = take_fingerprint(plan.target.model, params).weights
    return (plan.seed + int(weights[:8], 16)) % 2**32


def draw_params(plan: RunPlan) -> Params:
    """Draws the parameters of step 0, those of a pretrained language model in their place."""
    key, start = jax.random.key(plan.seed), plan.start
    if not start.pretrained:
        return plan.target.model.init(key)
    lm = load_pretrained(start.pretrained, **start.lm_changes)
    return plan.target.model.init(key, lm.params)


def _shape(_: Any, x: Any) -> tuple[int, ...]:
    return x.shape


def _shape_beside_vocabulary(path: Any, x: Any) -> tuple[int, ...]:
    """The shape of a parameter without the axis of token ids."""
    axes = sharding.logical_axes(trees.path_name(path), x.ndim)
    return tuple(n for n, axis in zip(x.shape, axes, strict=True) if axis != "vocab")


def _check_fit(
    plan: RunPlan, run: SavedRun, earlier: Params, wanted: Params, shape: _Shape
) -> None:
    """Refuses parameters of the run `init_from` whose shapes are not those wanted."""
    shapes, wanted_shapes = (jax.tree.map_with_path(shape, tree) for tree in (earlier, wanted))
    wrong = [name for name in earlier if shapes[name] != wanted_shapes.get(name)]
    different = _different(run.fields, plan.fields)
    require(
        not wrong,
        f"the parameters {wrong} of init_from={plan.start.init_from!r} do not fit this model; lm, "
        "model and the vocabulary must be configured alike. What that run has otherwise: "
        f"{', '.join(different) or 'its vocabulary'}.",
    )


def _different(earlier: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What a run has in other fields of its model than we have, such as "lm.width=16"."""
    ours = files.flatten(ours)
    return [
        f"{name}={value!r}"
        for name, value in files.flatten(earlier).items()
        if name.startswith(("lm.", "model.")) and name in ours and value != ours[name]
    ]


def _with_our_tokens(
    plan: RunPlan, run: SavedRun, earlier: Params, draw: Callable[[], Params]
) -> Params:
    """Returns parameters of another run with the ids of this run's tokens."""
    path = run.fields["data"].get("tokenizer_path") or run.fields["pretrained"]
    tokenizer = plan.target.task.tokenizer
    if not path or not isinstance(tokenizer, TextTokenizer):
        return earlier
    tokens, wanted = (t.backend.get_vocab() for t in (read_tokenizer(path), tokenizer))
    if tokens == wanted:
        return earlier
    new = sorted(wanted.keys() - tokens.keys())
    text = "%s has other ids of tokens; new are %d: %s"
    log.info(text, plan.start.init_from, len(new), " ".join(new[:20]))
    drawn = draw()
    return change_vocabulary(earlier, {n: drawn[n] for n in earlier}, tokens, wanted)
