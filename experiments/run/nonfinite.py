"""Steps whose loss or gradient is not finite: their batches, kept, read and computed again."""

import io
import math
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.run.stage import FIELDS
from experiments.run.stored_sizes import MOST_STEPS
from gradmem_jax.checks import require
from gradmem_jax.dtypes import widened
from gradmem_jax.foreign_text import one_line, shown
from gradmem_jax.losses import IGNORE
from gradmem_jax.memory.interface import MemoryModel
from gradmem_jax.storage.reading import require_file
from gradmem_jax.storage.steps import saved_steps
from gradmem_jax.storage.writing import write_file
from gradmem_jax.training.step import loss_gradient
from gradmem_jax.trees import Params


class NonFiniteError(RuntimeError):
    """A loss or a gradient became NaN or infinite, more often than may be."""


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether no array of a tree has a NaN or an infinite number: bool scalar."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


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
    names = {*FIELDS, "index", "step", "num_write_steps"}
    size = require_file(path, "batch of a run")
    try:
        with zipfile.ZipFile(path) as file:
            members = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
            missing = names - members.keys()
            require(not missing, f"it lacks {sorted(missing)}")
            batch = {name: _read_member(file, members[name], size) for name in names}
        _check_batch(batch)
    except OSError as error:
        raise ValueError(f"--batch={path} cannot be read: {error}") from error
    except Exception as error:  # whatever zipfile and numpy make of other bytes
        raise ValueError(
            f"--batch={path} is no batch of a run, or damaged ({one_line(str(error), 300)}); give "
            "a nonfinite_step_*.npz."
        ) from error
    return batch


def _read_member(file: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> np.ndarray:
    """Reads an array as `np.savez` writes it, which packs nothing; it is no larger than it says."""
    require(
        info.compress_type == zipfile.ZIP_STORED and info.file_size <= size,
        f"{shown(info.filename)} is packed, or larger than the file",
    )
    data = io.BytesIO(file.read(info))
    np.lib.format.read_magic(data)
    shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    require(
        dtype.kind in "ib" and math.prod(shape) * dtype.itemsize == _size_left(data),
        f"{shown(info.filename)} is no array of whole numbers, or cut short",
    )
    data.seek(0)
    return np.lib.format.read_array(data, allow_pickle=False)


def _size_left(data: io.BytesIO) -> int:
    """Bytes that have not been read."""
    return data.getbuffer().nbytes - data.tell()


def _check_batch(batch: Mapping[str, np.ndarray]) -> None:
    """Refuses arrays whose sizes do not fit together."""
    count = batch["index"].shape
    queries = batch["query_ids"].shape
    require(
        len(count) == 1
        and batch["context_ids"].ndim in (2, 3)
        and len(queries) in (2, 3)
        and all(batch[name].shape[:1] == count for name in FIELDS)
        and all(batch[name].shape == queries for name in ("labels", "value_mask"))
        and all(batch[name].size > 0 for name in FIELDS),
        "the shapes of its arrays do not fit",
    )
    step, k = batch["step"], batch["num_write_steps"]
    require(
        step.shape == k.shape == () and 1 <= int(step) < 2**31 and 0 <= int(k) <= MOST_STEPS,
        "its step or its num_write_steps cannot be",
    )


def check_ids(batch: Mapping[str, np.ndarray], vocab_size: int) -> None:
    """Refuses a batch whose ids the model of a run does not have."""
    for name in ("context_ids", "query_ids", "labels"):
        least = IGNORE if name == "labels" else 0
        ids = batch[name]
        require(
            bool((ids >= least).all() and (ids < vocab_size).all()),
            f"--batch: {name} are outside of the {vocab_size} ids of this run; give a batch of it.",
        )


def nearest_checkpoint(directory: pathlib.Path, step: int) -> str:
    """Returns the step of the checkpoint nearest to a step, the earlier one of two.

    A run that stops at a step that is not finite saves its state within that window, and as no
    such step changes it, that is often the very state the step had.

    Raises:
        ValueError: there is none.
    """
    steps = saved_steps(directory)
    require(bool(steps), f"{directory} has no checkpoint; train the run until it saves one.")
    return str(min(steps, key=lambda saved: abs(saved - step)))


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
        return metrics["loss"], optax.global_norm(widened(gradient))

    for i, index in enumerate(batch["index"]):
        loss, norm = compute({name: batch[name][i : i + 1] for name in FIELDS})
        yield SampleResult(int(index), float(loss), float(norm))
