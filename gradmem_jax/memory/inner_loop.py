"""The loop around WRITE's step: what it reports, and how it is cut short, stopped or made cheaper.

A step is `(gradient_fn, carry) -> (carry, (losses [B], gradient norms))`, where the carry is
(memory, optimizer state), leaves [B, ...]. `scan_steps` runs K of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import register_namedtuple_serialization

from gradmem_jax.dtypes import at_least_float32
from gradmem_jax.memory.meta_gradient import (
    GradientFn,
    LossFn,
    first_order,
    reverse_over_reverse,
    second_order,
)
from gradmem_jax.parallel.any_mesh import vary_like
from gradmem_jax.trees import PyTree

Row = tuple[jax.Array, PyTree]
StepFn = Callable[[GradientFn, PyTree], tuple[PyTree, Row]]
# Keeping the last step's linearised gradient saves 10 % of a training step's time with two steps
# and 4 % with five; compiling takes 30 % longer (docs/notebook.md, "A step on CPU").
MAX_STEPS_TO_KEEP_LAST = 2


class WriteInfo(NamedTuple):
    """What happened in a WRITE. Row k is measured before update k + 1.

    Attributes:
        losses: WRITE loss in nats a token: [K, B] for GradMem; of other methods `write_memory` says
            what they are. The outer gradient passes them; that costs nothing if they are not used.
        gradient_norms: [K, B] for each array of the memory, norm of its gradient before clipping;
            constants to the outer gradient.
        num_steps: int32 [B], updates made. Rows of steps that nobody evaluated are 0.

    Examples:
        >>> _, info = model.write_memory(params, context_ids, num_steps=2)
        >>> info.losses.shape, info.num_steps.tolist()
        ((2, 2), [2, 2])
    """

    losses: jax.Array
    gradient_norms: PyTree
    num_steps: jax.Array


register_namedtuple_serialization(WriteInfo, serialized_name="gradmem_jax.WriteInfo")


class WriteSettings(NamedTuple):
    """What a WRITE is told beside its contexts, for each sample; None where nothing is said.

    Attributes:
        num_steps: int32 [B], K of each sample; None takes all steps that are compiled.
        loss_tolerance: [B], see `GradMem.write_memory`.
        write_learning_rate: [B], alpha in place of the model's.
        loss_data: pytree of arrays [B, ...] for the model's `write_loss`.
    """

    num_steps: jax.Array | None = None
    loss_tolerance: jax.Array | None = None
    write_learning_rate: jax.Array | None = None
    loss_data: PyTree = None


def steps_to_take(settings: WriteSettings, max_steps: int, batch_size: int) -> jax.Array:
    """K of each sample, int32 [B]: that of the settings, or all that are compiled."""
    if settings.num_steps is None:
        return jnp.full(batch_size, max_steps, jnp.int32)
    return settings.num_steps


def safe_norm(x: jax.Array) -> jax.Array:
    """Euclidean norm of each sample of x [B, ...] as [B]; its gradient at zero is zero."""
    squares = jnp.square(x.astype(at_least_float32(x.dtype)))
    total = squares.sum(axis=tuple(range(1, x.ndim)))
    positive = total > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1.0)), 0.0)


def per_sample(values: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes [B] to broadcast against an array [B, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def clip_gradient(
    gradient: PyTree, clip_value: float | None = None, clip_norm: float | None = None
) -> PyTree:
    """Clips every leaf [B, ...] by component, then by the norm of each sample.

    Args:
        gradient: pytree of arrays [B, ...].
        clip_value: bound on the size of a component.
        clip_norm: bound on the norm of a sample's leaf.

    Returns:
        Pytree like `gradient`.
    """

    def clip(g: jax.Array) -> jax.Array:
        if clip_value is not None:
            g = jnp.clip(g, -clip_value, clip_value)
        if clip_norm is not None:
            norm = per_sample(safe_norm(g), g)
            g = jnp.where(norm > clip_norm, g * (clip_norm / (norm + 1e-6)).astype(g.dtype), g)
        return g

    return jax.tree.map(clip, gradient)


def step_if(
    is_taken: jax.Array,
    step: Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]],
    carry: PyTree,
    k: jax.Array,
) -> tuple[PyTree, PyTree]:
    """One step of a `lax.scan`, `step(carry, k)`, if it `is_taken`.

    If not it costs nothing (but under `jax.vmap`, which computes both), leaves the carry as it is,
    and its row is zeros.
    """
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(step, carry, k)[1])

    def skip(carry: PyTree, k: jax.Array) -> tuple[PyTree, PyTree]:
        del k
        return carry, nothing

    return jax.lax.cond(is_taken, step, skip, carry, k)


def scan_steps(
    step: StepFn,
    carry: PyTree,
    gradient_fns: Sequence[tuple[int, GradientFn]],
    *,
    num_steps: jax.Array | None = None,
    second_order_steps: int | None = None,
    loss_tolerance: jax.Array | None = None,
) -> tuple[PyTree, WriteInfo]:
    """Runs the steps of a WRITE, one `lax.scan` for each kind of gradient.

    Args:
        step: one step, see the module's docstring.
        carry: memory and optimizer state, leaves [B, ...].
        gradient_fns: (number of steps, gradient that they descend) in their order, see
            `gradients_of_steps`.
        num_steps: int32 [B], how many of the steps each sample takes; None takes all.
        second_order_steps: of `num_steps`, how many of the last ones keep the derivative of their
            gradient; None means all.
        loss_tolerance: [B], a sample stops before the first step at which its loss is not above
            this; None never stops.

    Returns:
        The last carry, and a `WriteInfo`.
    """
    batch_size = jax.tree.leaves(carry)[0].shape[0]
    may_stop = num_steps is not None or loss_tolerance is not None
    active, num_taken = jnp.ones(batch_size, bool), jnp.zeros(batch_size, jnp.int32)
    memory_like = carry[0]
    carry = vary_like((carry, active, num_taken), memory_like)
    first_step, rows = 0, []
    for count, gradient_fn in gradient_fns:

        def take(carry: Any, k: jax.Array, gradient_fn: GradientFn = gradient_fn) -> Any:
            before, active, num_taken = carry
            if num_steps is not None and second_order_steps is not None:
                gradient_fn = _constant_if(k < num_steps - second_order_steps, gradient_fn)
            after, row = step(gradient_fn, before)
            if loss_tolerance is not None:
                active = active & (row[0] > loss_tolerance.astype(row[0].dtype))
            if may_stop:
                after = _select(active, after, before)
            return (after, active, num_taken + active.astype(jnp.int32)), row

        def take_if_active(carry: Any, k: jax.Array, take: Any = take) -> Any:
            before, active, num_taken = carry
            if num_steps is not None:
                active = active & (k < num_steps)
            return step_if(active.any(), take, (before, active, num_taken), k)

        steps = jnp.arange(first_step, first_step + count)
        carry, row = jax.lax.scan(take_if_active if may_stop else take, carry, steps)
        rows.append(row)
        first_step += count
    after, _, num_taken = carry
    if not rows:
        nothing = jnp.zeros((0, batch_size))
        return after, WriteInfo(nothing, jax.tree.map(lambda _: nothing, memory_like), num_taken)
    losses, norms = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    return after, WriteInfo(losses, norms, num_taken)


def detached(step: StepFn) -> StepFn:
    """The same step, through which no outer gradient passes from carry to carry."""

    def cut_step(gradient_fn: GradientFn, carry: PyTree) -> tuple[PyTree, Row]:
        carry, row = step(gradient_fn, jax.lax.stop_gradient(carry))
        return jax.lax.stop_gradient(carry), row

    return cut_step


def _select(active: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Rows of `new` where bool [B] is true, those of `old` elsewhere."""
    return jax.tree.map(lambda x, y: jnp.where(per_sample(active, x), x, y), new, old)


def _constant_if(is_constant: jax.Array, gradient_fn: GradientFn) -> GradientFn:
    """The same, its gradient a constant to the outer gradient where bool [B] is true."""

    def losses_and_gradient(
        memory: PyTree, inputs: PyTree, constants: PyTree
    ) -> tuple[jax.Array, PyTree]:
        losses, gradient = gradient_fn(memory, inputs, constants)

        def cut(g: jax.Array) -> jax.Array:
            return jnp.where(per_sample(is_constant, g), jax.lax.stop_gradient(g), g)

        return losses, jax.tree.map(cut, gradient)

    return losses_and_gradient


def orders_of_steps(
    num_steps: int,
    second_order_steps: int | None = None,
    *,
    traced: bool = False,
    stops: bool = False,
    keep_last: bool = False,
) -> list[tuple[int, str]]:
    """Splits K steps by how the outer gradient passes them.

    Args:
        num_steps: K, or its bound.
        second_order_steps: how many of the last steps are second order; None means all.
        traced: whether K is traced: any step may be second order, and any may be the last.
        stops: whether samples may stop at a tolerance: any step may be the last.
        keep_last: whether the last step may keep its linearised gradient; it does with
            `MAX_STEPS_TO_KEEP_LAST` second-order steps or fewer.

    Returns:
        (number of steps, order) of each run that is not empty, in order: "first", "second" and
        "second_kept".
    """
    second = num_steps if second_order_steps is None else min(second_order_steps, num_steps)
    if traced and second:
        second = num_steps
    may_keep = keep_last and not traced and not stops
    kept = int(may_keep and 0 < second <= MAX_STEPS_TO_KEEP_LAST)
    runs = [
        (num_steps - second, "first"),
        (second - kept, "second"),
        (kept, "second_kept"),
    ]
    return [(count, order) for count, order in runs if count]


def gradients_of_steps(
    loss_fn: LossFn, orders: Sequence[tuple[int, str]], *, mixed: bool = True
) -> list[tuple[int, GradientFn]]:
    """Makes the gradients of `scan_steps`.

    Args:
        loss_fn: see `reverse_over_reverse`.
        orders: from `orders_of_steps`.
        mixed: whether second order is computed in mixed mode, or by reverse over reverse.
    """
    functions = {
        "first": first_order(loss_fn),
        "second": second_order(loss_fn) if mixed else reverse_over_reverse(loss_fn),
        "second_kept": second_order(loss_fn, keep=True),
    }
    return [(count, functions[order]) for count, order in orders]
