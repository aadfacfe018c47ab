"""Training steps to plan: those of a run's configuration, or of a catalogue of known models."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run.fitting import with_lm
from experiments.run.plan import RunPlan, Stage
from gradmem_jax.checks import AUTOMATIC
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.parallel.sharding import MeshConfig
from gradmem_jax.training.optimizer import OptimizerConfig

Batch = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Work:
    """A training step.

    Attributes:
        name: what tables call it.
        model: the model.
        batch: shapes and dtypes of a batch of all devices.
        mesh: how devices are arranged.
        optimizer: the outer optimizer.
        frozen: see `make_train_step`.
        num_micro_batches: see `make_train_step`.
    """

    name: str
    model: MemoryModel
    batch: Batch
    mesh: MeshConfig = MeshConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    frozen: tuple[str, ...] = ()
    num_micro_batches: int = AUTOMATIC

    @property
    def batch_size(self) -> int:
        """B, of all devices."""
        return self.batch["context_ids"].shape[0]

    def with_lm(self, **changes: Any) -> "Work":
        """The same with other values of some fields of the language model's configuration."""
        return dataclasses.replace(self, model=with_lm(self.model, **changes))


def batch_shapes(
    batch_size: int, context_tokens: int, query_tokens: int, num_queries: int = 1
) -> Batch:
    """Shapes and dtypes of a batch: contexts [B, S], queries with targets [B, R, Q] or [B, Q]."""
    queries = (batch_size, *(num_queries,) * (num_queries > 1), query_tokens)
    return {
        "context_ids": jax.ShapeDtypeStruct((batch_size, context_tokens), jnp.int32),
        "query_ids": jax.ShapeDtypeStruct(queries, jnp.int32),
        "labels": jax.ShapeDtypeStruct(queries, jnp.int32),
        "value_mask": jax.ShapeDtypeStruct(queries, jnp.bool_),
    }


def works_of_run(plan: RunPlan, batch_size: int | None = None) -> Iterator[Work]:
    """The steps that a run compiles: of each stage, for each length of contexts.

    Args:
        plan: of the run.
        batch_size: B in place of the run's.
    """
    for stage in plan.stages:
        for batch in _batches(plan, stage, batch_size or plan.batch_size):
            sizes = batch["context_ids"].shape
            yield Work(
                f"{stage.name}, {' x '.join(map(str, sizes))} tokens",
                stage.model,
                batch,
                plan.mesh,
                plan.optimizer,
                plan.frozen,
                plan.num_micro_batches,
            )


def _batches(plan: RunPlan, stage: Stage, batch_size: int) -> Iterator[Batch]:
    """Shapes of a stage's batches, one for each length of contexts, the longest first."""
    task = stage.task
    iterator = make_iterator(task.source("train"), 1, task=task, num_threads=0)
    sample: Mapping[str, np.ndarray] = next(iter(iterator))
    own = sample["context_ids"].shape[-1]
    for length in sorted({*getattr(task, "context_buckets", ()), own}, reverse=True):
        batch = {}
        for name in ("context_ids", "query_ids", "labels", "value_mask"):
            x = sample[name]
            shape = (batch_size, *x.shape[1:])
            shape = (*shape[:-1], length) if name == "context_ids" else shape
            batch[name] = jax.ShapeDtypeStruct(shape, x.dtype)
        yield batch
