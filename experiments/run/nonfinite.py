"""Steps whose loss or gradient is not finite: their batches, kept, read and computed again."""

import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.run.stage import FIELDS
from gradmem_jax.checks import require
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.storage.steps import saved_steps
from gradmem_jax.storage.writing import write_file
from gradmem_jax.training.step import loss_gradient
from gradmem_jax.trees import Params


class NonFiniteError(RuntimeError):
    """Loss or gradient became NaN or infinite."""


def save_batch(
    workdir: pathlib.Path, batch: Mapping[str, np.ndarray], step: int, num_write_steps: int
) -> pathlib.Path:
    """Keeps the batch of a step, its sample numbers `index` among it; returns the file.

    Each of several processes keeps its own part.
    """
    part = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = workdir / f"nonfinite_step_{step}{part}.npz"
    arrays: dict[str, Any] = {**batch, "step": step, "num_write_steps": num_write_steps}
    write_file(path, lambda place: np.savez(place, **arrays))
    return path


class SampleResult(NamedTuple):
    """What a sample of a batch gives on its own.

    Attributes:
        sample: its number in the source.
        loss: its outer loss.
        gradient_norm: of the outer gradient.
    """

    sample: int
    loss: float
    gradient_norm: float


def load_batch(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a batch that a run has kept, with its `index`, `step` and `num_write_steps`.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            batch = dict(file)
    except OSError as error:
        raise ValueError(f"--batch={path} cannot be read: {error}") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"--batch={path} is no batch of a run, or damaged; give a nonfinite_step_*.npz."
        ) from error
    missing = {*FIELDS, "index", "step", "num_write_steps"} - batch.keys()
    require(not missing, f"--batch={path} lacks {sorted(missing)}; give a nonfinite_step_*.npz.")
    return batch


def checkpoint_before(directory: pathlib.Path, step: int) -> str:
    """Returns the step of the newest checkpoint that is not after a step.

    Raises:
        ValueError: there is none.
    """
    steps = saved_steps(directory)
    before = [earlier for earlier in steps if earlier <= step]
    require(
        bool(before),
        f"{directory} has no checkpoint of step {step} or before; it has steps {steps}: name one "
        "of them with --checkpoint.",
    )
    return str(before[-1])


def sample_results(
    model: MemoryModel,
    params: Params,
    batch: Mapping[str, np.ndarray],
    frozen: Sequence[str] = (),
) -> Iterator[SampleResult]:
    """Yields loss and gradient norm of each sample of a batch.

    Args:
        model: the model, with the batch's number of WRITE steps.
        params: its parameters.
        batch: from `load_batch`.
        frozen: see `make_train_step`.
    """

    @jax.jit
    def compute(sample: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        gradient, metrics = loss_gradient(model, params, sample, frozen=frozen)
        return metrics["loss"], optax.global_norm(gradient)

    for i, index in enumerate(batch["index"]):
        loss, norm = compute({name: batch[name][i : i + 1] for name in FIELDS})
        yield SampleResult(int(index), float(loss), float(norm))
