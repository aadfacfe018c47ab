"""Several processes that train together: who they are, what they agree on, who writes files."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.program import console
from gradmem_jax.checks import require
from gradmem_jax.foreign_text import one_line


def _from_environment(name: str, value: int | None) -> int | None:
    text = os.environ.get(name)
    if value is not None or text is None:
        return value
    require(text.isdecimal(), f"{name}={text!r} must be a whole number.")
    return int(text)


def connect(
    distributed: bool,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes that flags or environment name; before any use of a device.

    Args:
        distributed: whether JAX is to find out itself what the others do not say.
        coordinator_address: host:port of process 0, or JAX_COORDINATOR_ADDRESS.
        num_processes: how many processes there are, or JAX_NUM_PROCESSES.
        process_id: which of them this is, from 0, or JAX_PROCESS_ID.

    Raises:
        ValueError: it is not said where, how many or which.
    """
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    number = _from_environment("JAX_NUM_PROCESSES", num_processes)
    index = _from_environment("JAX_PROCESS_ID", process_id)
    given = {"coordinator_address": address, "num_processes": number, "process_id": index}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if not distributed:
        if len(missing) == len(given):
            return
        require(
            not missing,
            f"{' and '.join(missing)} must be set too, or --distributed where JAX can find out.",
        )
    require(
        number is None or index is None or index < number,
        f"--process_id={index} must be below --num_processes={number}.",
    )
    require(
        address is None or address.rpartition(":")[2].isdecimal(),
        f"--coordinator_address={address!r} must be host:port.",
    )
    jax.config.update("jax_enable_preemption_service", False)  # signals are ours, see stopping.py
    try:
        jax.distributed.initialize(address, number, index)
    except Exception as error:  # JAX and its plugins raise errors of several kinds
        why = one_line(str(error), 300).rstrip(".")
        raise ValueError(
            f"the processes cannot be joined: {why}. On a machine of its own leave --distributed "
            "out; in a cluster that JAX does not know, set "
            "--coordinator_address, --num_processes and --process_id."
        ) from error
    with console.library_output():  # Gloo says who is connected, when first needed
        largest(0)


def disconnect() -> None:
    """Waits until the other processes, if there are any, have come to their end as well."""
    jax.distributed.shutdown()


def cpu() -> jax.Device:
    """This process's CPU as a device, or its first device if JAX may not use the CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def is_first() -> bool:
    """Whether this process is the one that writes logs and files."""
    return jax.process_index() == 0


def from_first(value: int) -> int:
    """Returns what process 0 has; all processes must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def largest(value: int) -> int:
    """Returns the largest of the processes' values; all processes must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())
