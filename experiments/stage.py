"""A curriculum stage that is being trained: its data, its compiled steps, its devices."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.build import Stage, build_optimizer_config
from experiments.reporting import log
from gradmem_jax.config import require
from gradmem_jax.data.pipeline import make_iterator
from gradmem_jax.optimizer import make_optimizer
from gradmem_jax.training import TrainState, make_train_step

FIELDS = ("context_ids", "query_ids", "labels", "value_mask")  # what the training step takes


class Devices(NamedTuple):
    """Where arrays live: batches split over all devices, everything else on each of them."""

    batch: NamedSharding
    replicated: NamedSharding
    names: list[str]


def find_devices(batch_size: int) -> Devices:
    """Returns shardings over all devices, for data-parallel training."""
    devices = jax.devices()
    require(
        batch_size % len(devices) == 0,
        f"batch_size={batch_size} must be a multiple of the {len(devices)} devices.",
    )
    mesh = Mesh(np.array(devices), ("data",))
    split, whole = PartitionSpec("data"), PartitionSpec()
    kinds = [device.device_kind for device in devices]
    names = [f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))]
    return Devices(NamedSharding(mesh, split), NamedSharding(mesh, whole), names)


class RunningStage:
    """Batches of a stage, and its training step, compiled once for each shape of them.

    Attributes:
        index: number of the stage, from 0.
        name: what progress lines call it.
        num_write_steps: K.
        iterator: grain iterator over training batches.
        compile_seconds: how long compiling has taken so far.
    """

    def __init__(
        self,
        config: ConfigDict,
        stages: list[Stage],
        index: int,
        devices: Devices,
        state: TrainState,
        iterator_state: Any = None,
    ):
        """Opens the data of a stage, where `iterator_state` says, and compiles the first step.

        Args:
            config: see experiments/configs/default.py.
            stages: what `build_stages` returned.
            index: which of them.
            devices: what `find_devices` returned.
            state: a training state, for its shapes.
            iterator_state: of an iterator of this stage; None starts from the beginning.
        """
        model, task, self.name = stages[index]
        self.index, self.compile_seconds = index, 0.0
        self.num_write_steps = model.config.num_write_steps
        self._batch_sharding = devices.batch
        self.iterator = make_iterator(
            task.source("train"),
            config.batch_size,
            task=task,
            repeat=True,
            shuffle_seed=config.seed if config.shuffle else None,
        )
        if iterator_state is None:
            iterator_state = self.iterator.get_state()
        self._step_fn = jax.jit(
            make_train_step(
                model,
                make_optimizer(build_optimizer_config(config)),
                config.num_micro_batches,
                config.frozen,
            ),
            donate_argnums=0,
            in_shardings=(devices.replicated, devices.batch),
            out_shardings=devices.replicated,
        )
        self._state_shapes = jax.eval_shape(lambda: state)
        self._compiled: dict[tuple[int, ...], Any] = {}
        first = self.next_batch()
        self._compiled_for({name: first[name] for name in FIELDS})
        self.iterator.set_state(iterator_state)

    def next_batch(self) -> dict[str, np.ndarray]:
        """Returns the next training batch, on the host, with `index`, the samples it holds."""
        batch = next(self.iterator)
        return {name: batch[name] for name in (*FIELDS, "index")}

    def step(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Any]:
        """Takes a training step."""
        on_devices = jax.device_put({name: batch[name] for name in FIELDS}, self._batch_sharding)
        return self._compiled_for(on_devices)(state, on_devices)

    def _compiled_for(self, batch: Any) -> Any:
        shape = (*batch["context_ids"].shape, *batch["query_ids"].shape)
        if shape not in self._compiled:
            started = time.monotonic()
            self._compiled[shape] = self._step_fn.lower(self._state_shapes, batch).compile()
            seconds = time.monotonic() - started
            self.compile_seconds += seconds
            lengths = f"contexts of {batch['context_ids'].shape[-1]}, queries of {shape[-1]} tokens"
            log.info("training on %s, %s; compiled in %.1f s", self.name, lengths, seconds)
        return self._compiled[shape]
