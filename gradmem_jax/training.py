"""The outer loop: READ loss through WRITE, an optax update, all in one compiled step."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradmem_jax.checks import AUTOMATIC
from gradmem_jax.freezing import join_params, split_params
from gradmem_jax.losses import IGNORE, token_losses
from gradmem_jax.memory.interface import Memory, MemoryModel
from gradmem_jax.memory.segments import outer_write_loss, write_context, write_token_losses
from gradmem_jax.micro_batches import count_micro_batches, sum_over_parts
from gradmem_jax.sharding import (
    batch_sharding,
    gradient_on_mesh,
    mesh_compiler_options,
    shardings,
)
from gradmem_jax.trees import Params

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a training run carries from step to step on the device.

    Attributes:
        step: int32 scalar, steps done.
        params: parameters of the model.
        optimizer_state: state of the optax transformation, of trained parameters only.
    """

    step: jax.Array
    params: Params
    optimizer_state: Any


def init_state(
    params: Params, optimizer: optax.GradientTransformation, frozen: Sequence[str] = ()
) -> TrainState:
    """Makes the state of step 0 of parameters; see `make_train_step` for `frozen`."""
    return TrainState(jnp.int32(0), params, optimizer.init(split_params(params, frozen)[0]))


def batch_totals(batch: Batch) -> dict[str, jax.Array]:
    """Counts what the means of a batch are taken over: targets, values, queries and samples."""
    valid = valid_samples(batch)
    targets = (batch["labels"] >= 0) & per_query(valid, batch["labels"])
    values = batch.get("value_mask", targets) & targets
    count = lambda x: jnp.maximum(x.sum(), 1).astype(jnp.float32)
    return {
        "targets": count(targets),
        "values": count(values),
        "queries": count(values.any(axis=-1)),
        "samples": count(valid),
    }


def valid_samples(batch: Batch) -> jax.Array:
    """Which samples count: bool [B]."""
    return batch.get("valid", jnp.ones(batch["labels"].shape[0], bool))


def per_query(valid: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes bool [B] to broadcast against [B, Q] or [B, R, Q]."""
    return valid.reshape(-1, *[1] * (like.ndim - 1))


def loss_and_metrics(
    model: MemoryModel,
    params: Params,
    batch: Batch,
    *,
    totals: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, Metrics]:
    """Outer loss of a batch: mean READ loss of the targets, plus the weighted WRITE loss.

    Args:
        model: the model.
        params: its parameters.
        batch: context_ids int [B, S], or [B, T, S] in T segments; query_ids int [B, Q] or
            [B, R, Q], the target included; labels like query_ids, negative where there is no
            target; optionally value_mask, bool like labels, the targets that exact match looks at
            (default: all), and valid, bool [B], false for samples that only fill up the batch.
        totals: what to divide sums by, from `batch_totals` of the whole batch if this is a part.

    Returns:
        The loss, and means over the batch: loss, read_loss, write_loss (see `outer_write_loss`),
        exact_match, token_accuracy, write_gradient_norm (of the whole memory, over the steps).
    """
    totals = totals or batch_totals(batch)
    context_ids = batch["context_ids"]
    memory, info = write_context(model, params, context_ids)
    read_loss, metrics, _ = read_loss_and_metrics(model, params, memory, batch, totals)
    mean = lambda x: jnp.where(valid_samples(batch), x, 0).sum() / totals["samples"]
    write_loss = mean(outer_write_loss(model, context_ids, info))
    norms = [norm for norm in jax.tree.leaves(info.gradient_norms) if norm.size]
    loss = read_loss + model.config.inner_loss_weight * write_loss
    metrics |= {"loss": loss, "write_loss": write_loss, "write_gradient_norm": jnp.float32(0)}
    if norms:
        norm = functools.reduce(jnp.hypot, norms)
        metrics["write_gradient_norm"] = mean(norm.reshape(-1, len(context_ids)).mean(axis=0))
    return loss, jax.tree.map(jax.lax.stop_gradient, metrics)


def read_loss_and_metrics(
    model: MemoryModel,
    params: Params,
    memory: Memory,
    batch: Batch,
    totals: Mapping[str, jax.Array],
) -> tuple[jax.Array, Metrics, jax.Array]:
    """READ loss, metrics, and which queries match exactly, bool [B] or [B, R]."""
    labels = jnp.where(per_query(valid_samples(batch), batch["labels"]), batch["labels"], IGNORE)
    values = batch.get("value_mask", labels >= 0) & (labels >= 0)
    logits = model.read_memory(params, memory, batch["query_ids"])[..., :-1, :]
    loss = token_losses(logits, labels).sum() / totals["targets"]
    correct = logits.argmax(-1) == labels
    exact = jnp.where(values, correct, True).all(axis=-1) & values.any(axis=-1)
    return (
        loss,
        {
            "read_loss": loss,
            "exact_match": exact.sum() / totals["queries"],
            "token_accuracy": (correct & values).sum() / totals["values"],
        },
        exact,
    )


def evaluate_batch(
    model: MemoryModel,
    params: Params,
    batch: Batch,
    num_steps: jax.Array,
    *,
    max_steps: int,
    num_kinds: int = 0,
    mesh: Mesh | None = None,
) -> tuple[Metrics, dict[str, jax.Array]]:
    """Evaluates a batch after a traced number of WRITE steps; compiled once for all of them.

    Args:
        model: the model.
        params: its parameters.
        batch: see `loss_and_metrics`; with `num_kinds`, also context_kinds, int [B, S]; optionally
            query_segments, int [B, R], the segment that holds the answer of each query.
        num_steps: int32 scalar, K.
        max_steps: the largest K to come.
        num_kinds: how many kinds of context tokens there are.
        mesh: see `loss_gradient`.

    Returns:
        Means over the batch: read_loss, exact_match, token_accuracy, write_loss (after the last
        step), write_loss_by_kind [num_kinds] and, with query_segments, exact_match_by_segment [T].
        And what to weight them with over batches: the totals of `batch_totals`, tokens,
        kinds [num_kinds] and segment_queries [T].
    """
    return _jit_evaluation(mesh)(
        model, params, dict(batch), num_steps, max_steps=max_steps, num_kinds=num_kinds
    )


@functools.cache
def _jit_evaluation(mesh: Mesh | None) -> Any:
    """The jitted evaluation of a mesh, see `evaluate_batch`."""

    def evaluate(
        model: MemoryModel,
        params: Params,
        batch: Batch,
        num_steps: jax.Array,
        *,
        max_steps: int,
        num_kinds: int,
    ) -> tuple[Metrics, dict[str, jax.Array]]:
        totals = batch_totals(batch) | _token_totals(model, batch, num_kinds)

        def on_device(params: Params, part: Batch, shared: Any) -> tuple[Params, Metrics]:
            num_steps, totals = shared
            evaluate_part = lambda part: _evaluate_part(
                model, params, part, totals, num_steps, max_steps
            )
            return {}, sum_over_parts(evaluate_part, part, num_parts(AUTOMATIC, part))

        shared = (num_steps, totals)
        if mesh is None:
            return on_device(params, batch, shared)[1], totals
        return gradient_on_mesh(on_device, mesh, params, batch, shared, {})[1], totals

    static = ("model", "max_steps", "num_kinds")
    if mesh is None:
        return jax.jit(evaluate, static_argnames=static)
    return jax.jit(
        evaluate,
        static_argnames=static,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=mesh_compiler_options(mesh),
    )


def _evaluate_part(
    model: MemoryModel,
    params: Params,
    batch: Batch,
    totals: Mapping[str, jax.Array],
    num_steps: jax.Array,
    max_steps: int,
) -> Metrics:
    """The part of a batch's metrics that some of its samples contribute, see `evaluate_batch`."""
    context_ids = batch["context_ids"]
    memory, _ = write_context(model, params, context_ids, num_steps=num_steps, max_steps=max_steps)
    _, metrics, exact = read_loss_and_metrics(model, params, memory, batch, totals)
    losses = write_token_losses(model, params, memory, context_ids)
    losses = losses * _counted_tokens(model, batch)
    metrics["write_loss"] = losses.sum() / jnp.maximum(totals["tokens"], 1)
    if "kinds" in totals:
        kinds = jax.nn.one_hot(batch["context_kinds"], len(totals["kinds"]))
        sums = jnp.einsum("...s,...sk->k", losses, kinds)
        metrics["write_loss_by_kind"] = sums / jnp.maximum(totals["kinds"], 1)
    if "query_segments" in batch:
        asked = jax.nn.one_hot(batch["query_segments"], context_ids.shape[1])
        matches = jnp.einsum("br,brt->t", exact, asked)
        metrics["exact_match_by_segment"] = matches / jnp.maximum(totals["segment_queries"], 1)
    return metrics


def _token_totals(model: MemoryModel, batch: Batch, num_kinds: int) -> dict[str, jax.Array]:
    """Counts that `evaluate_batch` returns beside those of `batch_totals`."""
    tokens = _counted_tokens(model, batch)
    totals = {"tokens": tokens.sum()}
    if num_kinds:
        kinds = jax.nn.one_hot(batch["context_kinds"], num_kinds) * tokens[..., None]
        totals["kinds"] = kinds.sum(axis=tuple(range(tokens.ndim)))
    if "query_segments" in batch:
        num_segments = batch["context_ids"].shape[1]
        asked = jax.nn.one_hot(batch["query_segments"], num_segments)
        totals["segment_queries"] = (asked * valid_samples(batch)[:, None, None]).sum(axis=(0, 1))
    return totals


def _counted_tokens(model: MemoryModel, batch: Batch) -> jax.Array:
    """Which context tokens count, bool like context_ids."""
    context_ids = batch["context_ids"]
    return (context_ids != model.config.pad_id) & per_query(valid_samples(batch), context_ids)


def num_parts(num_micro_batches: int, batch: Batch) -> int:
    """How many micro-batches a device makes of its batch."""
    (batch_size, *_, length), queries = batch["context_ids"].shape, batch["query_ids"].shape[1:]
    return count_micro_batches(num_micro_batches, batch_size, length + math.prod(queries))


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
        mesh: devices that the batch is split over, see gradmem_jax/sharding.py; each splits its
            own part into micro-batches.

    Returns:
        Gradient like the trained part of `params`, and the metrics of the whole batch.
    """
    totals = totals or batch_totals(batch)
    trained, constant = split_params(params, frozen)
    if mesh is not None:
        on_part = lambda params, part, totals: loss_gradient(
            model, params, part, num_micro_batches, frozen, totals=totals
        )
        return gradient_on_mesh(on_part, mesh, params, dict(batch), totals, trained)

    def loss_fn(trained: Params, part: Batch) -> tuple[jax.Array, Metrics]:
        return loss_and_metrics(model, join_params(trained, constant), part, totals=totals)

    gradient_fn = functools.partial(jax.grad(loss_fn, has_aux=True), trained)
    return sum_over_parts(gradient_fn, dict(batch), num_parts(num_micro_batches, batch))


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

    A step whose loss or gradient is not finite leaves parameters and optimizer as they are and
    says so in `metrics["finite"]`.

    Args:
        model: the model.
        optimizer: the outer optimizer.
        num_micro_batches: see `loss_gradient`.
        frozen: regular expressions of the paths of parameters that stay as they are, see
            `split_params`.
        mesh: see `loss_gradient`; None computes on the devices where the arrays are.
        seed: what dropout is a function of, beside the step.
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
        (gradient,) = pull_back(gradient)
        gradient_norm = optax.global_norm(gradient)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(gradient_norm)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, trained)
        updated = (optax.apply_updates(trained, updates), optimizer_state)
        keep = lambda new, old: jnp.where(finite, new, old)
        trained, optimizer_state = jax.tree.map(keep, updated, (trained, state.optimizer_state))
        metrics |= {"gradient_norm": gradient_norm, "finite": finite}
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
    """
    where = shardings(state, mesh)
    return jax.jit(
        make_train_step(model, optimizer, num_micro_batches, frozen, mesh, seed),
        donate_argnums=0,
        in_shardings=(where, batch_sharding(mesh)),
        out_shardings=(where, NamedSharding(mesh, PartitionSpec())),
        compiler_options=mesh_compiler_options(mesh),
    )
