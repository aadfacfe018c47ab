"""GradMem that starts from a forward write: RMT's output first, gradient steps after it."""

import dataclasses
from typing import ClassVar, Literal

import jax

from gradmem_jax.checks import require_integer
from gradmem_jax.memory.gradmem import GradMem, GradMemConfig
from gradmem_jax.memory.inner_loop import WriteInfo, WriteSettings
from gradmem_jax.memory.prefix import PrefixConfig
from gradmem_jax.memory.rmt import RMT, RMTConfig
from gradmem_jax.trees import Params


@dataclasses.dataclass(frozen=True)
class WarmStartConfig(GradMemConfig):
    """GradMem whose K gradient steps start from the memory that forward passes wrote.

    With K = 0 the forward write remains.

    Attributes:
        num_forward_passes: how often RMT reads the context before the gradient steps.

    Examples:
        >>> config = gradmem_jax.WarmStartConfig(lm=small, num_forward_passes=2, num_write_steps=1)
        >>> gradmem_jax.WarmStart(config).config.num_forward_passes
        2
    """

    model_name: ClassVar[str] = "WarmStart"
    not_in_read: ClassVar[tuple[str, ...]] = (*GradMemConfig.not_in_read, "num_forward_passes")

    memory_projection: Literal["none", "proj"] = "none"
    num_forward_passes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("num_forward_passes", self.num_forward_passes, 1)


@dataclasses.dataclass(frozen=True)
class WarmStart(GradMem[jax.Array]):
    """GradMem after a forward write with the same parameters; see `GradMem`.

    Examples:
        >>> config = gradmem_jax.WarmStartConfig(lm=small, num_memory_tokens=2)
        >>> model = gradmem_jax.WarmStart(config)
        >>> params = jax.jit(model.init)(jax.random.key(0))
        >>> model.write_memory(params, context_ids, num_steps=0)[0].shape  # forward passes only
        (2, 2, 8)
    """

    config: WarmStartConfig

    @property
    def write_positions(self) -> int:
        """Positions that a WRITE needs beside the context: those of RMT, which starts it."""
        return self.forward_writer.write_positions

    @property
    def forward_writer(self) -> RMT:
        """The RMT that makes the forward passes, with the same parameters."""
        c = self.config
        same = {field.name: getattr(c, field.name) for field in dataclasses.fields(PrefixConfig)}
        same |= {"num_write_steps": c.num_forward_passes, "inner_loss_weight": 0.0}
        config = RMTConfig(**same, memory_projection=c.memory_projection)
        return RMT(config, num_write_parts=self.num_write_parts)

    def run_steps(
        self,
        params: Params,
        context_ids: jax.Array,
        memory: jax.Array | None,
        settings: WriteSettings,
        max_steps: int,
    ) -> tuple[jax.Array, WriteInfo]:
        """Forward passes, then gradient steps; see `GradMem.run_steps`."""
        passes = self.config.num_forward_passes
        memory, _ = self.forward_writer.run_steps(
            params, context_ids, memory, WriteSettings(), passes
        )
        return super().run_steps(params, context_ids, memory, settings, max_steps)
