"""Rotary positions: pairs of a head's components turn by an angle for each position."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradmem_jax.checks import (
    check_fields,
    require,
    require_choice,
    require_integer,
    require_number,
)
from gradmem_jax.dtypes import at_least_float32

_KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts beyond the trained length.

    "linear" divides every frequency by `factor`; "llama3" the low ones only, and blends between
    `low_frequency_factor` and `high_frequency_factor` (Llama 3.1); "yarn" blends between
    `beta_slow` and `beta_fast` turns (Peng et al., 2023); "longrope" divides each frequency by a
    factor of its own (Ding et al., 2024); "dynamic" raises the base as far as the tokens of a call
    reach beyond `original_positions`.

    "dynamic" and "longrope" look at the last position of each call, padding included. Keys that
    were kept from a shorter call are not turned again, as in transformers. So one query behind a
    memory, which is a call with it, and several queries, which find the memory's keys kept, are not
    the same beyond `original_positions`.

    Attributes:
        kind: one of the above.
        factor: how many times longer the context becomes.
        low_frequency_factor: wavelengths above `original_positions / low_frequency_factor` are
            divided by `factor` (llama3 only).
        high_frequency_factor: wavelengths below `original_positions / high_frequency_factor` are
            left alone (llama3 only).
        original_positions: context length of the original training (not for linear).
        beta_fast: frequencies with more turns in `original_positions` are left alone (yarn only).
        beta_slow: frequencies with fewer turns are divided by `factor` (yarn only).
        truncate: whether the ends of the blend are rounded to whole pairs (yarn only).
        short_factors: what each frequency is divided by (longrope only).
        long_factors: the same for calls beyond `original_positions` (longrope only).
        attention_factor: what turned queries and keys are multiplied by (yarn and longrope only);
            None is what the papers say.

    Examples:
        >>> scaling = gradmem_jax.RopeScaling(kind="yarn", factor=4.0, original_positions=2048)
        >>> gradmem_jax.LlamaConfig(vocab_size=10, rope_scaling=scaling).rope_scaling.factor
        4.0
    """

    kind: str = "llama3"
    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require_choice("rope_scaling.kind", self.kind, _KINDS)
        names = ["factor", "low_frequency_factor", "beta_slow"]
        names += ["attention_factor"] if self.attention_factor is not None else []
        for name in names:
            require_number(f"rope_scaling.{name}", getattr(self, name), above=0)
        for high, low in (
            ("high_frequency_factor", "low_frequency_factor"),
            ("beta_fast", "beta_slow"),
        ):
            require_number(f"rope_scaling.{high}", getattr(self, high), above=getattr(self, low))
        require_integer("rope_scaling.original_positions", self.original_positions, 1)
        for name in ("short_factors", "long_factors"):
            for value in getattr(self, name):
                require_number(f"rope_scaling.{name}", value, above=0)

    def check_width(self, width: int) -> None:
        """Raises ValueError unless this can stretch the frequencies of `width` components."""
        if self.kind == "longrope":
            for name in ("short_factors", "long_factors"):
                count = len(getattr(self, name))
                require(
                    count == width // 2,
                    f"rope_scaling.{name} has {count} numbers; it must have {width // 2}, one for "
                    "each pair of a head's components that turn.",
                )
        require(
            self.kind != "dynamic" or width > 2,
            f"rope_scaling.kind='dynamic' needs more than the {width} components of a head that "
            "turn here.",
        )

    @property
    def depends_on_length(self) -> bool:
        """Whether frequencies differ between short and long calls."""
        return self.kind in ("dynamic", "longrope")

    @property
    def turned_scale(self) -> float:
        """What turned queries and keys are multiplied by."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        if self.kind == "yarn":
            return 0.1 * math.log(self.factor) + 1
        return math.sqrt(1 + math.log(self.factor) / math.log(max(self.original_positions, 2)))


def rotary_frequencies(
    head_width: int, base: float, scaling: RopeScaling | None = None, length: Any = None
) -> Any:
    """Returns the angle per position of every rotated pair, float64 [Dh / 2].

    Args:
        head_width: Dh.
        base: base of the geometric series of frequencies.
        scaling: optional stretching, see `RopeScaling`.
        length: of a call, for a scaling that depends on it: an array [B] gives [B, 1, Dh / 2] of
            JAX's default type. None is a short one.

    Examples:
        >>> lm.rotary_frequencies(4, base=10000.0).tolist()  # [Dh / 2]
        [1.0, 0.01]
    """
    dtype = jnp.result_type(float)
    exponents = -np.arange(0, head_width, 2, dtype=np.float64) / head_width
    frequencies = base**exponents
    if scaling is None:
        return frequencies
    factor, original = scaling.factor, scaling.original_positions
    if scaling.kind == "linear":
        return frequencies / factor
    if scaling.kind == "llama3":
        turns = original * frequencies / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return keep * frequencies + (1 - keep) * frequencies / factor
    if scaling.kind == "yarn":
        keep = _kept_by_yarn(head_width, base, scaling)
        return keep * frequencies + (1 - keep) * frequencies / factor
    if scaling.kind == "longrope":
        short, long = (
            frequencies / np.array(x) for x in (scaling.short_factors, scaling.long_factors)
        )
        if length is None:
            return short
        short, long = (jnp.asarray(x[None, None], dtype) for x in (short, long))
        return jnp.where(length[:, None, None] > original, long, short)
    if length is None:
        return frequencies
    reach = jnp.maximum(length.astype(dtype) / original, 1.0)
    growth = jnp.log1p(factor * (reach - 1)) * (head_width / (head_width - 2))
    steps = jnp.asarray(exponents[None, None], dtype)
    return jnp.asarray(frequencies[None, None], dtype) * jnp.exp(growth[:, None, None] * steps)


def _kept_by_yarn(width: int, base: float, scaling: RopeScaling) -> np.ndarray:
    """Share of each frequency [Dh / 2] that YaRN leaves alone."""

    def pair(turns: float) -> float:
        """The pair, perhaps between two, that turns so often in the original length."""
        share = scaling.original_positions / (turns * 2 * math.pi)
        return width * math.log(share) / (2 * math.log(base))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last = last + 0.001 if first == last else last
    return 1 - np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)


def rotate(x: jax.Array, positions: jax.Array, frequencies: Any, scale: Any = 1.0) -> jax.Array:
    """Rotary position embedding, component i paired with i + Dr / 2 (as Llama checkpoints are).

    Args:
        x: [B, S, H, Dh].
        positions: int [S] or [B, S].
        frequencies: [Dr / 2] or [B or 1, 1, Dr / 2]; the first Dr <= Dh components turn.
        scale: what they are multiplied by.

    Returns:
        [B, S, H, Dh], dtype of x.

    Examples:
        >>> x = jnp.ones((1, 3, 2, 4))  # [B, S, H, Dh]
        >>> turned = lm.rotate(x, jnp.arange(3), lm.rotary_frequencies(4, base=10000.0))
        >>> turned.shape, turned[0, 0, 0].tolist()  # nothing turns at position 0
        ((1, 3, 2, 4), [1.0, 1.0, 1.0, 1.0])
    """
    width = 2 * frequencies.shape[-1]
    dtype = at_least_float32(x.dtype)
    angles = jnp.atleast_2d(positions)[..., None].astype(dtype)
    if frequencies.ndim == 1:
        frequencies = frequencies[None, None]
    angles = angles * jnp.asarray(frequencies, dtype)
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    if not isinstance(scale, float) or scale != 1.0:
        scale = jnp.asarray(scale, dtype)
        cos, sin = cos * scale, sin * scale
    first, second = jnp.split(x[..., :width].astype(dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    turned = turned.astype(x.dtype)
    if width == x.shape[-1]:
        return turned
    return jnp.concatenate([turned, x[..., width:]], axis=-1)
