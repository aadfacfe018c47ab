"""The outer loop: READ loss through WRITE, an optax update, all in one compiled step."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradmem_jax.checks import AUTOMATIC
from gradmem_jax.dtypes import widened
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.parallel.micro_batches import sum_over_parts
from gradmem_jax.parallel.sharding import (
    LAYERS,
    batch_sharding,
    gradient_on_mesh,
    mesh_compiler_options,
    shardings,
)
from gradmem_jax.training.losses import (
    Batch,
    Metrics,
    batch_totals,
    loss_and_metrics,
    tokens_of_sample,
    written_whole,
)
from gradmem_jax.trees import Params, join_params, split_params


class TrainState(NamedTuple):
    """All that a training run carries from step to step on the device.

    Attributes:
        step: int32 scalar, steps done.
        params: parameters of the model.
        optimizer_state: state of the optax transformation, of trained parameters only; in float32
            if they have 16 bits.

    Examples:
        >>> from gradmem_jax.training.step import init_state
        >>> state = init_state(params, optax.adamw(1e-3))
        >>> int(state.step), state.params is params
        (0, True)
    """

    step: jax.Array
    params: Params
    optimizer_state: Any


def init_state(
    params: Params, optimizer: optax.GradientTransformation, frozen: Sequence[str] = ()
) -> TrainState:
    """Makes the state of step 0 of parameters; see `make_train_step` for `frozen`.

    Examples:
        >>> from gradmem_jax.training.step import init_state
        >>> state = init_state(params, optax.adamw(1e-3), frozen=["^lm/"])
        >>> int(state.step)
        0
    """
    trained, _ = split_params(params, frozen)
    return TrainState(jnp.int32(0), params, optimizer.init(widened(trained)))


def loss_gradient(
    model: MemoryModel,
    params: Params,
    batch: Batch,
    num_micro_batches: int = AUTOMATIC,
    frozen: Sequence[str] = (),
    *,
    totals: Mapping[str, jax.Array] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Params, Metrics]:
    """Gradient of the outer loss; micro-batches bound memory and keep CPU caches warm.

    Samples do not interact, so the result depends neither on `num_micro_batches` nor on `mesh`.

    Args:
        model: the model.
        params: its parameters.
        batch: see `loss_and_metrics`.
        num_micro_batches: parts that are processed one after the other, see
            `count_micro_batches`.
        frozen: see `make_train_step`; nothing is computed for frozen parameters.
        totals: see `loss_and_metrics`.
        mesh: devices that the batch is split over, see parallel/sharding.py; each splits its own
            part into micro-batches.

    Returns:
        Gradient like the trained part of `params`, and the metrics of the whole batch.
    """
    totals = totals or batch_totals(batch)
    if mesh is None:
        return _gradient_of_part(
            model, params, batch, totals, num_micro_batches, frozen, platform=None
        )
    on_part = functools.partial(
        _gradient_of_part,
        model,
        num_micro_batches=num_micro_batches,
        frozen=frozen,
        platform=mesh.devices.flat[0].platform,
    )
    trained, _ = split_params(params, frozen)
    by_layers = getattr(model.config.lm, "gather", "step") == "layer"
    own = LAYERS if by_layers else None
    return gradient_on_mesh(on_part, mesh, params, dict(batch), totals, trained, own)


def _gradient_of_part(
    model: MemoryModel,
    params: Params,
    batch: Batch,
    totals: Mapping[str, jax.Array],
    num_micro_batches: int,
    frozen: Sequence[str],
    platform: str | None,
) -> tuple[Params, Metrics]:
    """Gradient of the samples that one device has; None: the compiler says which platform."""
    trained, constant = split_params(params, frozen)
    model = written_whole(model)

    def loss_fn(trained: Params, part: Batch) -> tuple[jax.Array, Metrics]:
        return loss_and_metrics(model, join_params(trained, constant), part, totals=totals)

    gradient_fn = functools.partial(jax.grad(loss_fn, has_aux=True), trained)
    num_tokens = tokens_of_sample(batch)
    return sum_over_parts(
        gradient_fn, dict(batch), num_micro_batches, num_tokens, platform, model.num_write_parts
    )


def step_params(model: MemoryModel, params: Params, step: jax.Array | int, seed: int) -> Params:
    """The parameters as training step `step` (int32 scalar, from 0) of a run uses them."""
    return model.training_params(params, jax.random.fold_in(jax.random.key(seed), step))


def make_train_step(
    model: MemoryModel,
    optimizer: optax.GradientTransformation,
    num_micro_batches: int = AUTOMATIC,
    frozen: Sequence[str] = (),
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the pure training step `(state, batch) -> (state, metrics)`, to be jitted.

    A step whose loss, gradient or new parameters are not finite leaves parameters and optimizer as
    they are and says so in `metrics["finite"]`. The optimizer computes in float32 where parameters
    have 16 bits.

    Args:
        model: the model.
        optimizer: the outer optimizer.
        num_micro_batches: see `loss_gradient`.
        frozen: regular expressions of the paths of parameters that stay as they are, see
            `split_params`.
        mesh: see `loss_gradient`; None computes on the devices where the arrays are.
        seed: what dropout is a function of, beside the step.

    Examples:
        >>> from gradmem_jax.training.step import init_state, make_train_step
        >>> optimizer = optax.adamw(1e-3)
        >>> state = init_state(params, optimizer)
        >>> step = jax.jit(make_train_step(model, optimizer), donate_argnums=0)
        >>> batch = {"context_ids": context_ids, "query_ids": query_ids, "labels": query_ids}
        >>> state, metrics = jax.eval_shape(step, state, batch)  # or step(state, batch)
        >>> state.params["initial_memory"].shape, "read_loss" in metrics
        ((2, 8), True)
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained, constant = split_params(state.params, frozen)

        def used_part(trained: Params) -> Params:
            params = step_params(model, join_params(trained, constant), state.step, seed)
            return split_params(params, frozen)[0]

        used, pull_back = jax.vjp(used_part, trained)
        gradient, metrics = loss_gradient(
            model, join_params(used, constant), batch, num_micro_batches, frozen, mesh=mesh
        )
        gradient = widened(pull_back(gradient)[0])
        gradient_norm = optax.global_norm(gradient)
        with jax.numpy_dtype_promotion("standard"):  # optax counts on it
            updates, optimizer_state = optimizer.update(
                gradient, state.optimizer_state, widened(trained)
            )
            updated = optax.apply_updates(trained, updates)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(gradient_norm)
        for x in jax.tree.leaves(updated):
            finite &= jnp.isfinite(x).all()
        trained, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (updated, optimizer_state),
            (trained, state.optimizer_state),
        )
        metrics |= {"gradient_norm": gradient_norm, "finite": finite}
        metrics |= model.param_metrics(state.params)
        params = join_params(trained, constant)
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return train_step


def jit_train_step(
    model: MemoryModel,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    num_micro_batches: int = AUTOMATIC,
    frozen: Sequence[str] = (),
    seed: int = 0,
) -> Any:
    """Jits the training step of a mesh; the state it is called with is given up.

    Args:
        model: the model.
        optimizer: the outer optimizer.
        state: a training state, for its shapes; it lies as `sharding.shardings` says.
        mesh: from `sharding.make_mesh`.
        num_micro_batches: see `loss_gradient`.
        frozen: see `make_train_step`.
        seed: see `make_train_step`.

    Examples:
        >>> from gradmem_jax.parallel.sharding import MeshConfig, make_mesh, place, shardings
        >>> from gradmem_jax.training.step import init_state, jit_train_step
        >>> mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        >>> optimizer = optax.adamw(1e-3)
        >>> state = init_state(params, optimizer)
        >>> state = place(state, shardings(state, mesh))
        >>> step = jit_train_step(model, optimizer, state, mesh)  # of (state, batch)
    """
    where = shardings(state, mesh)
    return jax.jit(
        make_train_step(model, optimizer, num_micro_batches, frozen, mesh, seed),
        donate_argnums=0,
        in_shardings=(where, batch_sharding(mesh)),
        out_shardings=(where, NamedSharding(mesh, PartitionSpec())),
        compiler_options=mesh_compiler_options(mesh),
    )
