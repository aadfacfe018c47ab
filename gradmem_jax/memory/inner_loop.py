"""The inner loop of a WRITE: gradient steps on any per-sample pytree, weights left alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradmem_jax.memory.meta_gradient import LossFn, Mode, losses_and_gradient
from gradmem_jax.trees import PyTree

UpdateFn = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
StepFn = Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]]
# Keeping the last step's linearised gradient saves 10 % of a training step's time with two steps
# and 4 % with five; compiling takes 30 % more time and memory (docs/performance.md).
MAX_STEPS_TO_KEEP_LAST = 2


class WriteInfo(NamedTuple):
    """What happened in a WRITE. Row k is measured before update k + 1.

    Attributes:
        losses: [K, B], WRITE loss in nats a token.
        gradient_norms: [K, B] for each array of the memory, norm of its gradient before clipping;
            constants to the outer gradient.
        num_steps: int32 [B], updates made. Rows of steps that nobody evaluated are 0.
    """

    losses: jax.Array
    gradient_norms: PyTree
    num_steps: jax.Array


def safe_norm(x: jax.Array) -> jax.Array:
    """Euclidean norm of each sample of x [B, ...] as [B]; its gradient at zero is zero."""
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
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


def step_if(taken: jax.Array, step: StepFn, carry: PyTree, k: jax.Array) -> tuple[PyTree, PyTree]:
    """One step of a `lax.scan`, `step(carry, k)`, if it is `taken`.

    If not it costs nothing, leaves the carry as it is, and its row is zeros.
    """
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(step, carry, k)[1])
    skip = lambda carry, k: (carry, nothing)
    return jax.lax.cond(taken, step, skip, carry, k)


def step_modes(
    num_steps: int,
    gradient_mode: str,
    second_order_steps: int | None,
    meta_gradient: str,
    differentiable_loss: bool,
    *,
    traced: bool = False,
    stops: bool = False,
    keep_last: bool = True,
) -> list[tuple[int, Mode]]:
    """Splits K steps into runs of equal mode, see `losses_and_gradient`.

    Args:
        num_steps: K, or its bound.
        gradient_mode: "second", "first" or "none".
        second_order_steps: how many of the last steps are second order; None means all.
        meta_gradient: "mixed" or "reverse", how second order is computed.
        differentiable_loss: whether the outer loss uses the last step's WRITE loss.
        traced: whether K is traced: any step may be second order, and any may be the last.
        stops: whether samples may stop at a tolerance: any step may be the last.
        keep_last: whether "mixed" may keep what the last step computes for the backward pass; it
            does with `MAX_STEPS_TO_KEEP_LAST` second-order steps or fewer.

    Returns:
        (number of steps, mode) of each run that is not empty, in order.
    """
    second = num_steps if second_order_steps is None else min(second_order_steps, num_steps)
    if gradient_mode != "second":
        second = 0
    elif traced and second:
        second = num_steps
    cheap = "none" if gradient_mode == "none" else "first"
    with_loss = 0
    if differentiable_loss:
        with_loss = num_steps - second if traced or stops else int(second == 0 and num_steps > 0)
    keep_last = keep_last and meta_gradient == "mixed" and not traced and not stops
    kept = int(keep_last and 0 < second <= MAX_STEPS_TO_KEEP_LAST)
    runs: list[tuple[int, Any]] = [
        (num_steps - second - with_loss, cheap),
        (with_loss, cheap + "_with_loss"),
        (second - kept, meta_gradient),
        (kept, "linearized"),
    ]
    return [(count, mode) for count, mode in runs if count]


def run_write_steps(
    loss_fn: LossFn,
    update_fn: UpdateFn,
    fast: PyTree,
    slow: PyTree,
    constants: PyTree,
    optimizer_state: PyTree,
    modes: list[tuple[int, Mode]],
    *,
    num_steps: jax.Array | None = None,
    second_order_steps: int | None = None,
    loss_tolerance: jax.Array | float | None = None,
) -> tuple[PyTree, WriteInfo]:
    """Runs the WRITE steps as one `lax.scan` for each run of equal mode.

    Args:
        loss_fn: `(fast, slow, constants) -> losses [B]`.
        update_fn: `(fast, gradient, optimizer_state) -> (fast, optimizer_state)`; leaves have a
            leading batch axis and rows do not mix.
        fast: what the steps update, leaves [B, ...].
        slow: other differentiable inputs of the loss.
        constants: inputs of the loss without gradient.
        optimizer_state: first state of `update_fn`.
        modes: (number of steps, mode) of each run, see `step_modes`.
        num_steps: traced int32 scalar, how many of the steps to take; None takes all.
        second_order_steps: of a traced `num_steps`, how many of the last ones keep the derivative
            of their gradient; None means all. Without one `modes` says it.
        loss_tolerance: a sample stops before the first update at which its loss is not above
            this; None never stops.

    Returns:
        The updated `fast`, and a `WriteInfo`.
    """
    batch_size = jax.tree.leaves(fast)[0].shape[0]
    may_stop = num_steps is not None or loss_tolerance is not None
    active = jnp.ones(batch_size, bool)
    taken = jnp.zeros(batch_size, jnp.int32)
    carry = (fast, optimizer_state, active, taken)
    rows: list[tuple[jax.Array, PyTree]] = []
    first_step = 0
    for count, mode in modes:
        evaluate = losses_and_gradient(loss_fn, mode)

        def step(carry: Any, k: jax.Array, evaluate: Any = evaluate, mode: Mode = mode) -> Any:
            fast, state, active, taken = carry
            if mode.startswith("none"):
                fast = jax.lax.stop_gradient(fast)
            losses, gradient = evaluate(fast, slow, constants)
            if num_steps is not None and second_order_steps is not None:
                is_constant = k < num_steps - second_order_steps
                gradient = jax.tree.map(
                    lambda g: jnp.where(is_constant, jax.lax.stop_gradient(g), g), gradient
                )
            norms = jax.tree.map(safe_norm, jax.lax.stop_gradient(gradient))
            new = update_fn(fast, gradient, state)
            if mode.startswith("none"):
                new = jax.lax.stop_gradient(new)
            if loss_tolerance is not None:
                active = active & (losses > loss_tolerance)
            if may_stop:
                keep = lambda new, old: jnp.where(per_sample(active, new), new, old)
                new = jax.tree.map(keep, new, (fast, state))
            return (*new, active, taken + active), (losses, norms)

        def maybe_step(carry: Any, k: jax.Array, step: Any = step) -> Any:
            fast, state, active, taken = carry
            if num_steps is not None:
                active = active & (k < num_steps)
            return step_if(active.any(), step, (fast, state, active, taken), k)

        steps = jnp.arange(first_step, first_step + count)
        carry, row = jax.lax.scan(maybe_step if may_stop else step, carry, steps)
        rows.append(row)
        first_step += count
    written, _, _, taken = carry
    if not rows:
        empty = jnp.zeros((0, batch_size))
        return fast, WriteInfo(empty, jax.tree.map(lambda _: empty, fast), taken)
    losses, norms = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    return written, WriteInfo(losses, norms, taken)
