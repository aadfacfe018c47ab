"""The outer optimizer: AdamW or Muon with warm-up, a schedule and clipping."""

import dataclasses
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from gradmem_jax.checks import (
    check_fields,
    require,
    require_integer,
    require_number,
)
from gradmem_jax.lm.language_model import kernel_axes, num_stacked_axes
from gradmem_jax.trees import path_name

Name = Literal["adamw", "muon"]
_ADAM_RMS = 0.2  # root mean square of an update of Adam, in learning rates (arXiv 2502.16982)
_NOT_DECAYED = ("bias", "scale", "A_log")  # how the names of such parameters end


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with warm-up.

    Muon (Jordan et al. 2024) makes the momentum of each linear layer orthogonal before it is
    added, scaled to the size of an update of Adam (Liu et al. 2025, arXiv 2502.16982) so that one
    learning rate serves both; parameters that are no linear layer have AdamW with Nesterov's
    momentum.

    Attributes:
        name: "adamw" or "muon".
        learning_rate: peak learning rate.
        warmup_steps: steps of linear warm-up from 0.
        schedule: "constant", or "cosine" down to `final_learning_rate` at `num_steps`.
        final_learning_rate: end of the cosine schedule.
        num_steps: length of the cosine schedule, warm-up included.
        b1: first-moment decay.
        b2: second-moment decay.
        epsilon: Adam's epsilon.
        weight_decay: decoupled weight decay of the matrices, not of biases, norm scales, `A_log` of
            Mamba and learned write learning rates; with Muon, of the linear layers.
        clip_norm: the gradient is scaled down to this global norm; None does not clip.

    Examples:
        >>> from gradmem_jax.training.optimizer import OptimizerConfig
        >>> OptimizerConfig(learning_rate=3e-4, warmup_steps=10, schedule="cosine").name
        'adamw'
    """

    name: Name = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    schedule: Literal["constant", "cosine"] = "constant"
    final_learning_rate: float = 0.0
    num_steps: int = 1_000_000
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        require_number("learning_rate", self.learning_rate, above=0)
        require_number("final_learning_rate", self.final_learning_rate)
        require(
            self.final_learning_rate >= 0,
            f"final_learning_rate={self.final_learning_rate} must not be negative.",
        )
        require_integer("warmup_steps", self.warmup_steps, 0)
        require_integer("num_steps", self.num_steps, 1)
        require(
            self.schedule != "cosine" or self.warmup_steps < self.num_steps,
            f"warmup_steps={self.warmup_steps} must be below num_steps={self.num_steps}; "
            "train longer, or set fewer (of a run, --config.optimizer.warmup_steps).",
        )
        for name in ("b1", "b2"):
            require_number(name, getattr(self, name))
            require(
                0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)} must be in [0, 1)."
            )
        require_number("epsilon", self.epsilon, above=0)
        require_number("weight_decay", self.weight_decay)
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative.")
        if self.clip_norm is not None:
            require_number("clip_norm", self.clip_norm, above=0)


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0,
            config.learning_rate,
            config.warmup_steps,
            config.num_steps,
            config.final_learning_rate,
        )
    if not config.warmup_steps:
        return optax.constant_schedule(config.learning_rate)
    return optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns the outer optimizer.

    Examples:
        >>> from gradmem_jax.training.optimizer import OptimizerConfig, make_optimizer
        >>> from gradmem_jax.training.step import init_state
        >>> optimizer = make_optimizer(OptimizerConfig(name="muon", learning_rate=1e-3))
        >>> state = init_state(params, optimizer)
    """
    rate = learning_rate_schedule(config)
    if config.name == "muon":
        optimizer = muon(
            rate,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=linear_layers,
            consistent_rms=_ADAM_RMS,
        )
    else:
        optimizer = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=matrices,
        )
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def matrices(params: Any) -> Any:
    """Says which parameters weight decay draws to zero, however layers are stacked.

    Args:
        params: parameters of a model, or a part of them.

    Returns:
        A tree like `params` of bools: whether it is a matrix, and zero not a special value of it.
    """

    def is_matrix(path: Any, x: jax.Array) -> bool:
        names = path_name(path).split("/")
        if "log_write_learning_rate" in names or names[-1].endswith(_NOT_DECAYED):
            return False
        return x.ndim - num_stacked_axes(names) >= 2

    return jax.tree.map_with_path(is_matrix, params)


def linear_layers(params: Any) -> Any:
    """Says which axes of each linear layer are its inputs and which its outputs.

    Args:
        params: parameters of a model, or a part of them.

    Returns:
        A tree like `params` with `MuonDimensionNumbers` for kernels and None for everything else.
        The leading axis of stacked layers is neither input nor output.
    """

    def axes(path: Any, x: jax.Array) -> MuonDimensionNumbers | None:
        names = path_name(path).split("/")
        if names[-1] != "kernel" or "log_write_learning_rate" in names:
            return None
        leading, inputs = kernel_axes(names, x.ndim)
        numbers = tuple(range(leading - x.ndim, 0))
        return MuonDimensionNumbers(numbers[:inputs], numbers[inputs:])

    return jax.tree.map_with_path(axes, params)
