"""Checkpoints of a run: the latest and the best, with all that an exact resume needs."""

import contextlib
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from gradmem_jax.array_checks import require_finite
from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.parallel.sharding import placed_shapes, shardings
from gradmem_jax.storage.checksum import bit_sum, checksum
from gradmem_jax.storage.damage import (
    DAMAGED,
    CheckpointError,
    check_metrics,
    is_damage,
    reason,
    set_aside,
)
from gradmem_jax.storage.reading import MEBIBYTE
from gradmem_jax.storage.steps import StepNames, check_files, orbax_path, saved_steps
from gradmem_jax.storage.writing import require_no_link
from gradmem_jax.trees import named_leaves

State = TypeVar("State")
Result = TypeVar("Result")
_CHECKSUM, _BIT_SUM = "checksum", "bit_sum"  # the latter until 2026-11, blind to places
# Files are compressed, moments of zeros well and parameters hardly; both bytes.
_LARGEST_SMALL, _MOST_COMPRESSED = 64 * MEBIBYTE, 100


def _rank(name: str, metrics: Mapping[str, float]) -> float:
    """Returns a metric by which checkpoints are ordered: one that is not finite is the lowest."""
    return metrics[name] if -math.inf < metrics[name] < math.inf else -math.inf


class _Checkpoints(ocp.CheckpointManager):
    """Checkpoints of Orbax; one of a rank that is not finite is saved as one without metrics."""

    rank: Callable[[Mapping[str, float]], float]

    def save(self, *args: Any, metrics: Any = None, **options: Any) -> bool:
        """Saves as Orbax does."""
        if metrics is not None and self.rank(metrics) == -math.inf:
            metrics = None
        return super().save(*args, metrics=metrics, **options)


@contextlib.contextmanager
def open_checkpoints(
    directory: str | pathlib.Path,
    *,
    best_metric: str = "score",
    keep_latest: int = 2,
    create: bool = True,
) -> Iterator[ocp.CheckpointManager]:
    """Opens the checkpoints in a directory, and at the end waits until all are written.

    Args:
        directory: where they are; made if missing.
        best_metric: the checkpoint with the highest such metric is kept; one that is not finite
            counts as none.
        keep_latest: how many of the newest are kept.
        create: make the directory if it is missing.

    Raises:
        ValueError: `create` is false, and the directory is missing or has a damaged checkpoint;
            or it is true, and there are links where files are to be written.
        CheckpointError: at the end, if one could not be written.

    Examples:
        >>> from gradmem_jax.storage.checkpoint import open_checkpoints, save
        >>> from gradmem_jax.training.step import init_state
        >>> with open_checkpoints("checkpoints") as checkpoints:
        ...     save(checkpoints, 1, init_state(params, optax.sgd(0.1)), {}, {"score": 0.5})
        ...     checkpoints.all_steps()
        [1]
    """
    path = orbax_path(directory)
    directory = pathlib.Path(path)
    if not create and not directory.is_dir():
        raise ValueError(f"there are no checkpoints in {directory}; is this a finished workdir?")
    if create:
        _check_links(directory)
    if jax.process_index() == 0 or not create:
        check_metrics(directory, best_metric, move=create)
    _wait_for_all("metrics")
    rank = functools.partial(_rank, best_metric)
    latest = checkpoint_managers.LatestN(keep_latest)
    best = checkpoint_managers.BestN(
        get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
        create=create,
        best_fn=rank,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
        cleanup_tmp_directories=create,
        step_name_format=StepNames(),
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
    checkpoints = _Checkpoints(path, options=options, item_handlers=handlers)
    checkpoints.rank = rank
    try:
        yield checkpoints
    except CheckpointError:
        with contextlib.suppress(Exception):  # it fails for the same reason
            checkpoints.close()
        raise
    except BaseException:
        with _writing(checkpoints):
            checkpoints.close()
        raise
    with _writing(checkpoints):
        if create:
            _read_back(checkpoints)
        checkpoints.close()


def _read_back(checkpoints: ocp.CheckpointManager) -> None:
    """Waits for the save in the background, and sees that its arrays are found where they belong.

    Raises:
        Exception: of Orbax or Tensorstore: it could not be written, or one is not found.
    """
    checkpoints.wait_until_finished()
    step = checkpoints.latest_step()
    if step is not None:
        checkpoints.item_metadata(step)


def _check_links(directory: pathlib.Path) -> None:
    """Refuses links in the place of what is written, moved or deleted here."""
    require_no_link(directory)
    require_no_link(directory.with_name(f"{directory.name}.{DAMAGED}"))
    for path in directory.glob("[0-9]*"):  # steps, and what a save that was killed has left
        require_no_link(path)


@contextlib.contextmanager
def _writing(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Says of a failed write where it was, what is left, and what to do."""
    try:
        yield
    except Exception as error:
        directory = pathlib.Path(checkpoints.directory)
        try:
            os.listdir(directory)
            whole = f"steps {saved_steps(directory)}"
        except OSError as hidden:
            whole = f"cannot be seen ({hidden.strerror})"
        raise CheckpointError(
            f"a checkpoint could not be written to {directory}: {reason(error)}. Whole ones there: "
            f"{whole}. Make space or make the folder writable; the same command goes on from "
            "the last of them."
        ) from error


def _wait_for_all(name: str) -> None:
    """Waits until all processes have come here, if there are several."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_for_errors(checkpoints: ocp.CheckpointManager) -> None:
    """Raises CheckpointError if a save in the background has failed; reads nothing from disk."""
    with _writing(checkpoints):
        if not checkpoints.is_saving_in_progress():
            checkpoints.wait_until_finished()


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: Any,
    run: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
) -> None:
    """Saves in the background; takes the place of an earlier checkpoint of the step.

    Args:
        checkpoints: from `open_checkpoints`.
        step: steps done.
        state: pytree of arrays.
        run: JSON-able state of the host: data iterator, curriculum stage, ...
        metrics: evaluation at this step, the `best_metric` of `open_checkpoints` among it; None if
            there was none: such a checkpoint is never the best. Nor is one whose `best_metric` is
            not finite; its metrics are not kept.

    Raises:
        CheckpointError: this one, or the one before, could not be written.

    Examples:
        >>> from gradmem_jax.storage.checkpoint import open_checkpoints, save
        >>> from gradmem_jax.training.step import init_state
        >>> with open_checkpoints("checkpoints") as checkpoints:
        ...     save(checkpoints, 1, init_state(params, optax.sgd(0.1)), {}, {"score": 0.5})
    """
    with _writing(checkpoints):
        _read_back(checkpoints)
        if step in checkpoints.all_steps():
            checkpoints.delete(step)
        host = dict(run) | {_CHECKSUM: checksum(state)}
        checkpoints.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(host)
            ),
            metrics=None if metrics is None else dict(metrics),
            force=True,
        )


def restore_latest(
    checkpoints: ocp.CheckpointManager, template: State
) -> tuple[State, dict[str, Any]] | None:
    """Restores the newest checkpoint that is whole.

    A damaged one, with files that are missing or hold something else, is reported and moved to the
    folder `damaged` beside the checkpoints. What cannot be read for another reason stays.

    Args:
        checkpoints: from `open_checkpoints`.
        template: a state of the same structure, shapes, dtypes and shardings.

    Returns:
        (state, run), or None if there is no checkpoint.

    Raises:
        CheckpointError: a disk that does not answer, a permission, a state of another structure;
            or all checkpoints were damaged, which is no reason to begin anew unasked.
    """
    directory = pathlib.Path(checkpoints.directory)
    steps = sorted(checkpoints.all_steps(), reverse=True)
    for step in steps:
        restored, error = None, None
        try:
            check_files(directory / str(step))
            _check_structure(checkpoints, step, template)
            restored = restore(checkpoints, step, template)
        except Exception as raised:  # whatever it is, all processes must hear of it
            error = raised
        damaged = error is not None and is_damage(error, directory / str(step))
        failures = _gather((error is not None, error is not None and not damaged))
        if not failures.any():
            return restored
        if failures[:, 1].any():
            raise CheckpointError(
                f"the checkpoint of step {step} in {directory} cannot be read: {reason(error)}. It "
                "may be whole and was left as it is. Once that is mended, the same command goes on "
                f"from it; to go on from the one before, move the folder {step} away."
            ) from error
        logging.error("checkpoint of step %d is damaged and set aside: %s", step, reason(error))
        if jax.process_index() == 0:
            set_aside(directory, step)
        _wait_for_all("damaged")
        checkpoints.reload()
    if steps:
        raise CheckpointError(
            f"no checkpoint is left in {directory}: those of steps {steps} are damaged and were "
            f"moved to {directory.name}.{DAMAGED} beside it. The same command starts from step 0."
        )
    return None


def _gather(flags: Sequence[bool]) -> np.ndarray:
    """Returns what every process has: bool [processes, flags]."""
    if jax.process_count() == 1:
        return np.asarray([flags])
    return np.asarray(multihost_utils.process_allgather(np.asarray(flags)))


def _check_structure(checkpoints: ocp.CheckpointManager, step: int, template: Any) -> None:
    """Raises CheckpointError if a checkpoint is one of another state than `template`."""

    def describe(tree: Any) -> dict[str, str]:
        leaves = named_leaves(tree).items()
        return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves}

    metadata = checkpoints.item_metadata(step)["state"]
    if metadata is None:
        return  # it cannot be read, and `restore` says why
    stored = describe(dict(metadata))
    wanted = describe(template)
    different = sorted(n for n in stored | wanted if stored.get(n) != wanted.get(n))
    if different:
        name = different[0]
        raise CheckpointError(
            f"it has another state than this run: {len(different)} arrays differ, such as {name}: "
            f"{stored.get(name)} there, {wanted.get(name)} here."
        )


def restore(
    checkpoints: ocp.CheckpointManager, step: int, template: State
) -> tuple[State, dict[str, Any]]:
    """Restores the checkpoint of a step as (state, run).

    Raises:
        ValueError: the arrays are not those that were saved.
    """
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    restored = checkpoints.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes), run=ocp.args.JsonRestore()),
    )
    state, run = restored["state"], restored["run"]
    require(isinstance(run, dict), "its file run/metadata is damaged")
    run = dict(run)
    for name, compute in ((_CHECKSUM, checksum), (_BIT_SUM, bit_sum)):
        require(
            name not in run or run.pop(name) == compute(state),
            f"its arrays are not those that were saved: they have another {name}, so some of them "
            "have changed on the disk.",
        )
    return state, run


def restore_params(
    directory: str | pathlib.Path, which: str | int = "best", mesh: Mesh | None = None
) -> tuple[int, Any]:
    """Restores the parameters of a finished run, wherever they were trained.

    Args:
        directory: the run's checkpoints.
        which: "best", "latest", or a step.
        mesh: devices to split them over, see parallel/sharding.py; None puts them on
            the first device of this process.

    Returns:
        (step, params).

    Raises:
        ValueError: there is no such checkpoint, or it cannot be read.

    Examples:
        >>> from gradmem_jax.storage.checkpoint import open_checkpoints, restore_params, save
        >>> from gradmem_jax.training.step import init_state
        >>> with open_checkpoints("checkpoints") as checkpoints:
        ...     save(checkpoints, 1, init_state(params, optax.sgd(0.1)), {}, {"score": 0.5})
        >>> step, restored = restore_params("checkpoints")
        >>> step, sorted(restored) == sorted(params)
        (1, True)
    """

    def read(checkpoints: ocp.CheckpointManager, step: int, shapes: Any) -> tuple[int, Any]:
        params = _restore_state(checkpoints, step, shapes, mesh)["params"]
        require_finite(params, "its parameters")
        return step, params

    return _read_one(directory, which, read)


def stored_shapes(directory: str | pathlib.Path) -> Any:
    """Shapes of a run's parameters, none of which is read.

    They are those of the newest checkpoint whose description is whole: all have the same.

    Raises:
        ValueError: there is no checkpoint, or none whose shapes can be read.
    """

    def read(_: ocp.CheckpointManager, __: int, shapes: Any) -> Any:
        return shapes["params"]

    failures = []
    steps: list[str | int] = [*saved_steps(directory)]
    for which in steps[::-1] or ["latest"]:
        try:
            return _read_one(directory, which, read)
        except ValueError as error:
            failures.append(error)
    raise failures[0]


def _read_one(
    directory: str | pathlib.Path,
    which: str | int,
    read: Callable[[ocp.CheckpointManager, int, Any], Result],
) -> Result:
    """Reads something of a checkpoint; gives its step and the shapes of its state to `read`."""
    which = str(which)
    with open_checkpoints(directory, create=False) as checkpoints:
        steps = checkpoints.all_steps()
        named = {"best": checkpoints.best_step, "latest": checkpoints.latest_step}
        step = named[which]() if which in named else int(which) if which.isdecimal() else None
        if step is None or step not in steps:
            raise ValueError(f"{directory} has no checkpoint {shown(which)}; it has steps {steps}.")
        try:
            size = check_files(pathlib.Path(directory, str(step)))
            return read(checkpoints, step, _shapes(checkpoints, step, size))
        except Exception as error:
            raise ValueError(
                f"checkpoint {which!r} of {directory}, step {step}, cannot be read: "
                f"{reason(error)}. There are also steps "
                f"{[other for other in steps if other != step]}; name one of them."
            ) from error


def _shapes(checkpoints: ocp.CheckpointManager, step: int, size: int) -> Any:
    """Shapes of a state, whatever its structure, in files of so many bytes."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        dict(checkpoints.item_metadata(step)["state"]),
    )
    claimed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    require(
        claimed <= _LARGEST_SMALL + _MOST_COMPRESSED * size,
        f"its {size} bytes claim to hold arrays of {claimed} bytes",
    )
    return shapes


def _restore_state(
    checkpoints: ocp.CheckpointManager, step: int, shapes: Any, mesh: Mesh | None
) -> Any:
    """Restores a state of some shapes."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = first if mesh is None else shardings(shapes, mesh)
    return restore(checkpoints, step, placed_shapes(shapes, where))[0]
