"""A curriculum stage that is being trained: its batches and its step."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.run.compiled_steps import Batch, CompiledSteps
from experiments.run.devices import Devices
from experiments.run.plan import RunPlan
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.data.tasks import GENERATED
from gradmem_jax.parallel import sharding
from gradmem_jax.training.step import TrainState

FIELDS = ("context_ids", "query_ids", "labels", "value_mask")  # what the training step takes


class RunningStage:
    """Batches of a stage, and its training step.

    Attributes:
        index: number of the stage, from 0.
        name: what progress lines call it.
        num_write_steps: K.
        iterator: grain iterator over this process's part of the training batches.
    """

    def __init__(
        self,
        plan: RunPlan,
        index: int,
        devices: Devices,
        steps: CompiledSteps,
        iterator_state: Any = None,
        sample_seed: int | None = None,
        check: Callable[[], None] | None = None,
    ):
        """Opens the data of a stage, where `iterator_state` says, and compiles the first step.

        Args:
            plan: of the run.
            index: which of its stages.
            devices: what `find_devices` returned.
            steps: the steps of the run.
            iterator_state: of an iterator of this stage; None starts from the beginning.
            sample_seed: of samples that are made, and of their order, in place of the run's.
            check: see `CompiledSteps.find`.
        """
        self._model, task, self.name = plan.stages[index]
        seed = plan.seed if sample_seed is None else sample_seed
        if sample_seed is not None and plan.task_name in GENERATED:
            made: Any = task
            task = dataclasses.replace(made, seed=seed)
        self.index, self._steps = index, steps
        self.num_write_steps = self._model.config.num_write_steps
        self._batch_sharding = devices.batch
        shard_index, num_shards = sharding.process_shard(devices.batch, plan.batch_size)
        self.iterator = make_iterator(
            task.source("train"),
            plan.batch_size // num_shards,
            task=task,
            repeat=True,
            shuffle_seed=seed if plan.shuffle else None,
            shard_index=shard_index,
            num_shards=num_shards,
        )
        if iterator_state is None:
            iterator_state = self.iterator.get_state()
        first = self._on_devices(self.next_batch())
        self.iterator.set_state(iterator_state)
        self._steps.start(self._model, [first, *_other_lengths(first, task)], self.name)
        self._steps.find(self._model, first, self.name, check)

    def next_batch(self) -> dict[str, np.ndarray]:
        """Returns this process's part of the next training batch, on the host.

        It has `index`, the samples it holds.
        """
        batch = next(self.iterator)
        return {name: batch[name] for name in (*FIELDS, "index")}

    def step(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Any]:
        """Takes a training step."""
        on_devices = self._on_devices(batch)
        step = self._steps.find(self._model, on_devices, self.name)
        return step(state, on_devices)

    def _on_devices(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        put = functools.partial(jax.make_array_from_process_local_data, self._batch_sharding)
        return {name: put(batch[name]) for name in FIELDS}


def _other_lengths(batch: Mapping[str, jax.Array], task: Any) -> Iterator[Batch]:
    """Shapes of batches like this one, with contexts of the other lengths of a task."""
    if jax.process_count() > 1:
        return  # processes would compile in different orders, and may wait for each other
    context = batch["context_ids"]
    for length in getattr(task, "context_buckets", ()):
        if length != context.shape[-1]:
            shape = (*context.shape[:-1], length)
            other = jax.ShapeDtypeStruct(shape, context.dtype, sharding=context.sharding)
            yield {**batch, "context_ids": other}
