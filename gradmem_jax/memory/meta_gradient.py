"""The gradient that a WRITE step descends, and how the outer gradient passes through it.

Three functions take a loss and return `(memory, inputs, constants) -> (losses [B], gradient)`, as
`jax.value_and_grad` does of the sum of the losses. They differ in their own derivative only:

- `second_order` is exact and saves nothing but its inputs (mixed mode), or, if told to keep it, the
  linearised gradient;
- `reverse_over_reverse` is exact and saves what JAX saves;
- `first_order` takes the gradient for a constant.

The losses are differentiated exactly by all three, and for nothing if nobody uses them.

Mixed mode: for cotangents u of the gradient and w of the losses L the pullback is

    u_memory, u_inputs = d/de [ d/d(memory, inputs) sum_b (1 + e w_b) L_b(memory + e u, inputs) ]

at e = 0, since second derivatives commute: one forward-over-reverse pass in the backward pass, the
JVP of the gradient in the direction u (MixFlow-MG, 2025). So memory does not grow with K.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradmem_jax.parallel.any_mesh import vary_like
from gradmem_jax.precision import at_precision, current_precision
from gradmem_jax.trees import PyTree

LossFn = Callable[[PyTree, PyTree, PyTree], jax.Array]
GradientFn = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]


def reverse_over_reverse(loss_fn: LossFn) -> GradientFn:
    """Losses and their gradient, differentiated as JAX does it.

    Args:
        loss_fn: `(memory, inputs, constants) -> losses [B]`; sample b's loss depends on row b of
            every leaf of `memory` only. Nothing is differentiated with respect to `constants`.

    Returns:
        `(memory, inputs, constants) -> (losses [B], gradient)`, the gradient like `memory`.
    """

    def total(memory: PyTree, inputs: PyTree, constants: PyTree) -> tuple[jax.Array, jax.Array]:
        losses = loss_fn(memory, inputs, constants)
        return losses.sum(), losses

    def losses_and_gradient(
        memory: PyTree, inputs: PyTree, constants: PyTree
    ) -> tuple[jax.Array, PyTree]:
        gradient, losses = jax.grad(total, has_aux=True)(memory, inputs, constants)
        return losses, gradient

    return losses_and_gradient


def first_order(loss_fn: LossFn) -> GradientFn:
    """Losses and their gradient, which is a constant to the outer gradient.

    Args:
        loss_fn: see `reverse_over_reverse`.
    """
    evaluate = reverse_over_reverse(loss_fn)

    def losses_and_gradient(
        memory: PyTree, inputs: PyTree, constants: PyTree
    ) -> tuple[jax.Array, PyTree]:
        _, gradient = evaluate(*jax.lax.stop_gradient((memory, inputs)), constants)
        # XLA finds the forward pass of the gradient equal to this one. A derivative that is asked
        # for computes it again; one that is not leaves nothing behind.
        return jax.checkpoint(loss_fn)(memory, inputs, constants), gradient

    return losses_and_gradient


def second_order(loss_fn: LossFn, *, keep: bool = False) -> GradientFn:
    """Losses and their gradient, differentiated exactly in mixed mode.

    Args:
        loss_fn: see `reverse_over_reverse`.
        keep: whether the forward pass linearises the gradient and keeps that for the backward pass,
            which then computes nothing twice. It pays for the last step, whose pullback comes soon.
    """
    evaluate = reverse_over_reverse(loss_fn)
    # Its rules call `evaluate`: in a scan, JAX 0.10 silently takes wrong second derivatives of a
    # function whose own rule calls it.
    losses_and_gradient = jax.custom_vjp(evaluate)

    def forward(memory: PyTree, inputs: PyTree, constants: PyTree) -> tuple[Any, Any]:
        return evaluate(memory, inputs, constants), (memory, inputs, constants)

    def backward(saved: Any, cotangents: tuple[jax.Array, PyTree]) -> tuple[PyTree, PyTree, None]:
        memory, inputs, constants = saved
        losses_cotangent, gradient_cotangent = cotangents
        # The memory must depend on the cotangent: without a loop, XLA would find this equal to the
        # forward pass and keep all that it computed. An optimization_barrier does not prevent that.
        memory = jax.tree.map(lambda x, u: x + 0 * u, memory, gradient_cotangent)
        weighted = _weighted_gradients(loss_fn, inputs, constants)
        ones = jnp.ones_like(losses_cotangent)
        _, pulled, _ = jax.jvp(
            weighted, (memory, ones), (gradient_cotangent, losses_cotangent), has_aux=True
        )
        return *pulled, None

    def forward_and_linearize(memory: PyTree, inputs: PyTree, constants: PyTree) -> tuple[Any, Any]:
        losses = jax.eval_shape(loss_fn, memory, inputs, constants)
        ones = vary_like(jnp.ones(losses.shape, losses.dtype), memory)
        weighted = _weighted_gradients(loss_fn, inputs, constants)
        (gradient, _), linearized, losses = jax.linearize(weighted, memory, ones, has_aux=True)
        return (losses, gradient), linearized

    def apply_linearized(
        linearized: Any, cotangents: tuple[jax.Array, PyTree]
    ) -> tuple[PyTree, PyTree, None]:
        losses_cotangent, gradient_cotangent = cotangents
        return *linearized(gradient_cotangent, losses_cotangent), None

    precision = current_precision()
    if keep:
        losses_and_gradient.defvjp(
            at_precision(forward_and_linearize, precision),
            at_precision(apply_linearized, precision),
        )
    else:
        losses_and_gradient.defvjp(
            at_precision(forward, precision), at_precision(backward, precision)
        )
    return losses_and_gradient


def with_derivative_of(
    function: Callable[..., PyTree], other: Callable[..., PyTree]
) -> Callable[..., PyTree]:
    """`function`, but where it is differentiated `other`, which returns the same.

    Args:
        function: a function of pytrees of arrays; it closes over nothing that is differentiated.
        other: the same, computed in the way that suits a backward pass.
    """
    either = jax.custom_vjp(function)
    other = at_precision(other, current_precision())

    def forward(*args: PyTree) -> tuple[PyTree, Any]:
        return jax.vjp(other, *args)

    def backward(pullback: Any, cotangent: PyTree) -> tuple[PyTree, ...]:
        return pullback(cotangent)

    either.defvjp(forward, backward)
    return either


def _weighted_gradients(loss_fn: LossFn, inputs: PyTree, constants: PyTree) -> Callable[..., Any]:
    """Gradients for memory and inputs of weighted losses, a function of memory and weights [B]."""

    def total(memory: PyTree, inputs: PyTree, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses = loss_fn(memory, inputs, constants)
        return jnp.vdot(weights, losses), losses

    def gradients(memory: PyTree, weights: jax.Array) -> tuple[tuple[PyTree, PyTree], jax.Array]:
        return jax.grad(total, argnums=(0, 1), has_aux=True)(memory, inputs, weights)

    return gradients
