"""Training steps, compiled once for each model and shape of batches, in the background too."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax

from experiments.program import heap
from experiments.program.console import log
from experiments.run import fitting
from experiments.run.devices import Devices
from experiments.run.plan import RunPlan
from experiments.run.stopping import Stopped
from gradmem_jax.checks import AUTOMATIC
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.parallel.sharding import num_batch_shards
from gradmem_jax.training.optimizer import make_optimizer
from gradmem_jax.training.step import jit_train_step

Batch = Mapping[str, jax.Array | jax.ShapeDtypeStruct]
_MAX_COMPILING = 4  # programs compiled at a time; each takes memory of the host
_LONG_SECONDS = 20.0  # of waiting, to speak of
_POLL_SECONDS = 0.1  # between looks at signals


class CompiledSteps:
    """Training steps of a run, compiled once for each model and shape of batches.

    Use it as a context: at its end, what nobody waits for is not compiled any more.

    Attributes:
        seconds: how long training has waited for compiling so far.
    """

    def __init__(self, plan: RunPlan, devices: Devices, state: Any):
        """Compiles nothing yet.

        Args:
            plan: of the run.
            devices: what `find_devices` returned.
            state: a training state, or the shapes and dtypes of one.
        """
        self.seconds = 0.0
        self._plan, self._mesh = plan, devices.mesh
        self._state_shapes = jax.tree.map(_shape, state)
        self._compiled: dict[tuple[Any, ...], futures.Future[Any]] = {}
        self._pool = futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_COMPILING))
        self._lowering = threading.Lock()
        self._hinted = False

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
        check: Callable[[], None] | None = None,
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
            if check is not None:
                check()
            futures.wait([compiling], _POLL_SECONDS)
        step = compiling.result()
        if waits:
            self.seconds += time.monotonic() - started
            self._hint()
        return step

    def _hint(self) -> None:
        """Says once how to wait less, where compiling took long."""
        if self.seconds > _LONG_SECONDS and not self._hinted:
            self._hinted = True
            if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
                log.info(
                    "JAX_COMPILATION_CACHE_DIR=FOLDER in front of this command keeps what was "
                    "compiled, and the next start need not wait for it"
                )

    def _begin(self, model: MemoryModel, batch: Batch, name: str) -> futures.Future[Any]:
        key = (model, batch["context_ids"].shape, batch["query_ids"].shape)
        if key not in self._compiled:
            self._compiled[key] = self._pool.submit(self._compile, model, batch, name)
        return self._compiled[key]

    def _jit(self, model: MemoryModel, num_micro_batches: int) -> Any:
        return jit_train_step(
            model,
            make_optimizer(self._plan.optimizer),
            self._state_shapes,
            self._mesh,
            num_micro_batches,
            self._plan.frozen,
            self._plan.seed,
        )

    def _compile(self, model: MemoryModel, batch: Batch, name: str) -> Any:
        started = time.monotonic()

        def lower(num_parts: int, remat: str) -> Any:
            with self._lowering:  # one after the other, so that the first is not held up
                step = self._jit(fitting.with_lm(model, remat=remat), num_parts)
                return step.lower(self._state_shapes, batch)

        given, room = self._plan.num_micro_batches, fitting.device_memory(self._mesh)
        remats, counts = fitting.remats(model.config.lm.remat), [given]
        if given == AUTOMATIC and room is not None:
            num_rows = len(batch["context_ids"]) // num_batch_shards(self._mesh)
            counts = fitting.divisors(num_rows)
        fitted = fitting.compile_to_fit(lower, counts, remats, room)
        if len(counts) * len(remats) > 1 and room is not None:
            log.info(
                "the batch of a device goes in %d parts, remat=%s", fitted.num_parts, fitted.remat
            )
        heap.give_back()
        log.info(
            "training on %s, contexts of %d, queries of %d tokens; compiled in %.1f s",
            name,
            batch["context_ids"].shape[-1],
            batch["query_ids"].shape[-1],
            time.monotonic() - started,
        )
        return fitted.step


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
