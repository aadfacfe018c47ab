"""How the outer gradient passes the gradient inside a WRITE step.

A WRITE step needs `g(fast) = d sum_b L_b / d fast`, where `fast` is what the step updates and
`slow` all else that the loss depends on. The outer loop needs the pullback of g and of the losses.
For cotangents u on g and w on the losses L it is

    u_fast, u_slow = d/de [ d/d(fast, slow) sum_b (1 + e w_b) L_b(fast + e u, slow) ]  at e = 0,

one forward-over-reverse pass, since second derivatives commute. Mixed mode computes just that, and
needs nothing saved but the inputs (MixFlow-MG, 2025, calls it mixed-mode differentiation): it
linearises the gradient in the backward pass. A step whose pullback comes soon, as the last one's
does, is better linearised where its gradient is computed; then nothing is computed twice.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gradmem_jax.trees import PyTree

LossFn = Callable[[PyTree, PyTree, PyTree], jax.Array]
LossesAndGradient = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]
Mode = Literal[
    "mixed", "linearized", "reverse", "first", "first_with_loss", "none", "none_with_loss"
]


def losses_and_gradient(loss_fn: LossFn, mode: Mode) -> LossesAndGradient:
    """Makes the function that a WRITE step calls for its losses and its gradient.

    Args:
        loss_fn: `(fast, slow, constants) -> losses [B]`; sample b's loss depends on row b of every
            leaf of `fast` only. Nothing is differentiated with respect to `constants`.
        mode: what the outer gradient sees. "mixed", "linearized" and "reverse": all of it, by
            forward over reverse, the same with the linearised gradient kept for the backward
            pass, and by reverse over reverse. "first": gradient and losses are constants.
            "none": moreover `fast` is a constant, which cuts the chain to earlier steps.
            The ending "_with_loss" keeps the losses differentiable.

    Returns:
        `(fast, slow, constants) -> (losses [B], gradient)`, the gradient shaped like `fast`.
    """
    if mode in ("mixed", "linearized"):
        return _mixed(loss_fn, keep=mode == "linearized")
    if mode == "reverse":
        return lambda fast, slow, constants: _evaluate(loss_fn, fast, slow, constants)

    def constant_gradient(
        fast: PyTree, slow: PyTree, constants: PyTree
    ) -> tuple[jax.Array, PyTree]:
        cut_fast, cut_slow = jax.lax.stop_gradient((fast, slow))
        losses, gradient = _evaluate(loss_fn, cut_fast, cut_slow, constants)
        if mode == "first_with_loss":
            losses = loss_fn(fast, slow, constants)
        elif mode == "none_with_loss":
            losses = loss_fn(cut_fast, slow, constants)
        return losses, gradient

    return constant_gradient


def _evaluate(
    loss_fn: LossFn, fast: PyTree, slow: PyTree, constants: PyTree
) -> tuple[jax.Array, PyTree]:
    def total(fast: PyTree) -> tuple[jax.Array, jax.Array]:
        losses = loss_fn(fast, slow, constants)
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(fast)
    return losses, gradient


def _linearize(
    loss_fn: LossFn, fast: PyTree, slow: PyTree, constants: PyTree
) -> tuple[tuple[jax.Array, PyTree], Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]]]:
    """Losses and gradient, and u, w -> u_fast, u_slow of the module's docstring."""

    def gradients(fast: PyTree, weights: jax.Array) -> tuple[tuple[PyTree, PyTree], jax.Array]:
        def weighted(fast: PyTree, slow: PyTree) -> tuple[jax.Array, jax.Array]:
            losses = loss_fn(fast, slow, constants)
            return jnp.vdot(weights, losses), losses

        return jax.grad(weighted, argnums=(0, 1), has_aux=True)(fast, slow)

    losses = jax.eval_shape(loss_fn, fast, slow, constants)
    ones = jnp.ones(losses.shape, losses.dtype)
    (gradient, _), pull_back, losses = jax.linearize(gradients, fast, ones, has_aux=True)
    return (losses, gradient), pull_back


def _mixed(loss_fn: LossFn, *, keep: bool) -> LossesAndGradient:
    @jax.custom_vjp
    def evaluate(fast: PyTree, slow: PyTree, constants: PyTree) -> tuple[jax.Array, PyTree]:
        return _evaluate(loss_fn, fast, slow, constants)

    def forward(fast: PyTree, slow: PyTree, constants: PyTree) -> tuple[Any, Any]:
        if keep:
            return _linearize(loss_fn, fast, slow, constants)
        # Not `evaluate`: in a scan, JAX 0.10 takes wrong derivatives of a rule that calls its own
        # function, without a word, when they are taken a second time.
        return _evaluate(loss_fn, fast, slow, constants), (fast, slow, constants)

    def backward(saved: Any, cotangents: tuple[jax.Array, PyTree]) -> tuple[PyTree, PyTree, None]:
        losses_cotangent, gradient_cotangent = cotangents
        if keep:
            pull_back = saved
        else:
            fast, slow, constants = saved
            # Without a loop around it XLA would keep what the forward pass has computed alike.
            later = jax.tree.map(lambda x, u: x + 0 * u, fast, gradient_cotangent)
            _, pull_back = _linearize(loss_fn, later, slow, constants)
        return *pull_back(gradient_cotangent, losses_cotangent), None

    evaluate.defvjp(forward, backward)
    return evaluate
