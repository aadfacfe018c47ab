"""Checkpoints of a run: the latest and the best, with all that an exact resume needs."""

import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

State = TypeVar("State")
DAMAGED = "damaged"


def open_checkpoints(
    directory: str | pathlib.Path,
    *,
    best_metric: str = "score",
    keep_latest: int = 2,
    create: bool = True,
) -> ocp.CheckpointManager:
    """Opens the checkpoints in a directory; close it, or use it as a context manager.

    Args:
        directory: where they are; made if missing.
        best_metric: the checkpoint with the highest such metric is kept.
        keep_latest: how many of the newest are kept.
        create: make the directory if it is missing.

    Raises:
        ValueError: the directory is missing and `create` is false.
    """
    directory = pathlib.Path(directory).absolute()
    if not create and not directory.is_dir():
        raise ValueError(f"there are no checkpoints in {directory}; is this a finished workdir?")
    latest = checkpoint_managers.LatestN(keep_latest)
    best = checkpoint_managers.BestN(
        get_metric_fn=lambda metrics: metrics[best_metric],
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    options = ocp.CheckpointManagerOptions(
        create=create,
        best_fn=lambda metrics: metrics[best_metric],
        preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
        cleanup_tmp_directories=create,
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: Any,
    run: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> None:
    """Saves in the background.

    Args:
        checkpoints: from `open_checkpoints`.
        step: steps done.
        state: pytree of arrays.
        run: JSON-able state of the host: data iterator, curriculum stage, ...
        metrics: evaluation at this step, the `best_metric` of `open_checkpoints` among it.
    """
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(dict(run))
        ),
        metrics=dict(metrics),
        force=True,
    )


def restore_latest(
    checkpoints: ocp.CheckpointManager, template: State
) -> tuple[State, dict[str, Any]] | None:
    """Restores the newest checkpoint that can be read.

    A damaged one is reported and moved to the folder `damaged` beside the checkpoints.

    Args:
        checkpoints: from `open_checkpoints`.
        template: a state of the same structure, shapes, dtypes and shardings.

    Returns:
        (state, run), or None if there is no checkpoint.
    """
    for step in sorted(checkpoints.all_steps(), reverse=True):
        try:
            return restore(checkpoints, step, template)
        except Exception as error:  # noqa: BLE001, any failure to read means damage
            logging.error("checkpoint of step %d is damaged and set aside: %s", step, error)
            root = pathlib.Path(checkpoints.directory)
            aside = root.with_name(f"{root.name}.{DAMAGED}")
            aside.mkdir(exist_ok=True)
            (root / str(step)).rename(aside / str(step))
            checkpoints.reload()
    return None


def restore(
    checkpoints: ocp.CheckpointManager, step: int, template: State
) -> tuple[State, dict[str, Any]]:
    """Restores the checkpoint of a step as (state, run)."""
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    restored = checkpoints.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes), run=ocp.args.JsonRestore()),
    )
    return restored["state"], restored["run"]


def restore_params(directory: str | pathlib.Path, which: str = "best") -> tuple[int, Any]:
    """Restores the parameters of a finished run.

    Args:
        directory: the run's checkpoints.
        which: "best", "latest", or a step.

    Returns:
        (step, params), the parameters on the first device, wherever they were trained.

    Raises:
        ValueError: there is no such checkpoint.
    """
    with open_checkpoints(directory, create=False) as checkpoints:
        steps = checkpoints.all_steps()
        named = {"best": checkpoints.best_step, "latest": checkpoints.latest_step}
        step = named[which]() if which in named else int(which) if which.isdigit() else None
        if step is None or step not in steps:
            raise ValueError(f"{directory} has no checkpoint {which!r}; it has steps {steps}.")
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        template = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
            dict(checkpoints.item_metadata(step)["state"]),
        )
        state = checkpoints.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template))
        )["state"]
    return step, state["params"]
