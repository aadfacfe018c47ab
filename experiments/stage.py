"""A curriculum stage that is being trained: its data, its compiled steps, its devices."""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments import heap
from experiments.build import Stage, build_optimizer_config
from experiments.reporting import log
from experiments.stopping import Stopped
from gradmem_jax import sharding
from gradmem_jax.checks import AUTOMATIC, require
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.optimizer import make_optimizer
from gradmem_jax.training import TrainState, jit_train_step
from gradmem_jax.trees import Params

Batch = Mapping[str, jax.Array | jax.ShapeDtypeStruct]
_MAX_COMPILING = 4  # programs compiled at a time; each takes memory of the host
_POLL_SECONDS = 0.1  # between looks at signals
FIELDS = ("context_ids", "query_ids", "labels", "value_mask")  # what the training step takes


class Devices(NamedTuple):
    """Where arrays live; see gradmem_jax/sharding.py.

    Attributes:
        mesh: all devices of all processes.
        batch: of arrays [B, ...].
        replicated: of arrays that every device has.
        names: what progress lines call them.
    """

    mesh: Mesh
    batch: NamedSharding
    replicated: NamedSharding
    names: list[str]

    def copy_to_first(self, params: Params) -> Params:
        """A copy of the parameters on the first device of each process."""
        whole = jax.jit(lambda params: params, out_shardings=self.replicated)(params)
        return jax.tree.map(lambda x: x.addressable_data(0), whole)


def find_devices(config: ConfigDict) -> Devices:
    """Arranges all devices as `config.mesh` says.

    Raises:
        ValueError: they do not fit, or the batch does not divide over them.
    """
    mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh.to_dict()))
    parts, micro = sharding.num_batch_shards(mesh), config.num_micro_batches
    require(
        config.batch_size % parts == 0,
        f"batch_size={config.batch_size} must be a multiple of the {parts} parts that mesh.data="
        f"{mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']} devices take.",
    )
    require(
        micro == AUTOMATIC or config.batch_size // parts % micro == 0,
        f"each of the {parts} devices along mesh.data and mesh.fsdp gets {config.batch_size} / "
        f"{parts} samples of batch_size={config.batch_size}, which must be a multiple of "
        f"num_micro_batches={micro}; use fewer micro-batches or a larger batch.",
    )
    kinds = [device.device_kind for device in mesh.devices.flat]
    names = [f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))]
    batch = sharding.batch_sharding(mesh)
    sharding.process_shard(batch, config.batch_size)
    return Devices(mesh, batch, NamedSharding(mesh, PartitionSpec()), names)


class CompiledSteps:
    """Training steps of a run, compiled once for each model and shape of batches.

    Use it as a context: at its end, what nobody waits for is not compiled any more.

    Attributes:
        seconds: how long training has waited for compiling so far.
    """

    def __init__(self, config: ConfigDict, devices: Devices, state: Any):
        """Compiles nothing yet.

        Args:
            config: see experiments/configs/default.py.
            devices: what `find_devices` returned.
            state: a training state, or the shapes and dtypes of one.
        """
        self.seconds = 0.0
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
        self._state_shapes = jax.tree.map(shape, state)
        self._jit = lambda model: jit_train_step(
            model,
            make_optimizer(build_optimizer_config(config)),
            self._state_shapes,
            devices.mesh,
            config.num_micro_batches,
            config.frozen,
            config.seed,
        )
        self._compiled: dict[tuple[Any, ...], futures.Future[Any]] = {}
        self._pool = futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_COMPILING))
        self._lowering = threading.Lock()

    def __enter__(self) -> "CompiledSteps":
        """Returns itself."""
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        """Waits for what is being compiled, unless the run is stopped, and drops the rest."""
        stopped = isinstance(error, Stopped) and jax.process_count() == 1
        self._pool.shutdown(wait=not stopped, cancel_futures=True)

    def start(self, model: MemoryModel, batches: Sequence[Batch], name: str) -> None:
        """Begins to compile the steps of a model in the background, those of others no more.

        Args:
            model: the model.
            batches: of the shapes expected, the one needed first in front.
            name: what progress lines call the steps.
        """
        self._compiled = {k: step for k, step in self._compiled.items() if not step.cancel()}
        for batch in batches:
            self._begin(model, batch, name)

    def find(
        self,
        model: MemoryModel,
        batch: Batch,
        name: str,
        check: Callable[[], None] = lambda: None,
    ) -> Any:
        """Returns the step of a model for batches like this one.

        Args:
            model: the model.
            batch: a batch, or its shapes.
            name: what progress lines call the step.
            check: called again and again until the step is compiled; what it raises ends the wait.
        """
        started = time.monotonic()
        compiling = self._begin(model, batch, name)
        waits = not compiling.done()
        while not compiling.done():
            check()
            futures.wait([compiling], _POLL_SECONDS)
        step = compiling.result()
        if waits:
            self.seconds += time.monotonic() - started
        return step

    def _begin(self, model: MemoryModel, batch: Batch, name: str) -> futures.Future[Any]:
        key = (model, batch["context_ids"].shape, batch["query_ids"].shape)
        if key not in self._compiled:
            self._compiled[key] = self._pool.submit(self._compile, model, batch, name)
        return self._compiled[key]

    def _compile(self, model: MemoryModel, batch: Batch, name: str) -> Any:
        with self._lowering:  # one after the other, so that the first is not held up
            started = time.monotonic()
            lowered = self._jit(model).lower(self._state_shapes, batch)
        step = lowered.compile()
        heap.give_back()
        log.info(
            "training on %s, contexts of %d, queries of %d tokens; compiled in %.1f s",
            *(name, batch["context_ids"].shape[-1], batch["query_ids"].shape[-1]),
            time.monotonic() - started,
        )
        return step


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
        config: ConfigDict,
        stages: list[Stage],
        index: int,
        devices: Devices,
        steps: CompiledSteps,
        iterator_state: Any = None,
        check: Callable[[], None] = lambda: None,
    ):
        """Opens the data of a stage, where `iterator_state` says, and compiles the first step.

        Args:
            config: see experiments/configs/default.py.
            stages: what `build_stages` returned.
            index: which of them.
            devices: what `find_devices` returned.
            steps: the steps of the run.
            iterator_state: of an iterator of this stage; None starts from the beginning.
            check: see `CompiledSteps.find`.
        """
        self._model, task, self.name = stages[index]
        self.index, self._steps = index, steps
        self.num_write_steps = self._model.config.num_write_steps
        self._batch_sharding = devices.batch
        shard_index, num_shards = sharding.process_shard(devices.batch, config.batch_size)
        self.iterator = make_iterator(
            task.source("train"),
            config.batch_size // num_shards,
            task=task,
            repeat=True,
            shuffle_seed=config.seed if config.shuffle else None,
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
