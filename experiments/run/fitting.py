"""Into how many parts a device splits its batch so that it has room for a step."""

import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.program.console import log

_ROOM = 0.95  # of a device's memory, for one program
_NO_ROOM = ("RESOURCE_EXHAUSTED", "Ran out of memory")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def device_memory(mesh: Mesh) -> int | None:
    """Bytes that JAX may have on each device; None on CPU, or where a device does not say it."""
    device = mesh.local_devices[0] if len(mesh.local_devices) else mesh.devices.flat[0]
    if device.platform == "cpu":
        return None
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(limit * _ROOM)


def total_bytes(compiled: Any) -> int:
    """Bytes that a compiled program takes on each device, its arguments included."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def bytes_without_room(error: Exception) -> int | None:
    """Bytes that a program would take that a compiler found no room for; None: another error."""
    text = str(error)
    if not any(sign in text for sign in _NO_ROOM):
        return None
    sizes = re.findall(r"(?:\(|Used |allocate )([\d.]+)\s?([KMGT]?)i?B?", text)
    return max((int(float(size) * _UNITS[unit]) for size, unit in sizes), default=0)


def compile_in_parts(
    lower: Callable[[int], Any], num_rows: int, room: int | None
) -> tuple[Any, int]:
    """Compiles a step for as few parts as there is room for.

    It is the same choice whenever device, compiler and step are the same, so a run that goes on
    makes it again.

    Args:
        lower: from a number of parts to the lowered step.
        num_rows: samples of a device.
        room: bytes that a step may take; None takes what one part takes.

    Returns:
        The compiled step, and the number of parts.

    Raises:
        jax.errors.JaxRuntimeError: there is no room for one sample at a time.
    """
    counts = [n for n in range(1, num_rows + 1) if num_rows % n == 0]
    count, smallest = 1, 0
    while True:
        compiled, needed = None, 0
        try:
            compiled = lower(count).compile()
            needed = total_bytes(compiled)
        except jax.errors.JaxRuntimeError as error:
            found = bytes_without_room(error)
            if found is None or count == num_rows:
                raise
            needed = found
        if compiled is not None and (room is None or needed <= room or count == num_rows):
            return compiled, count
        smallest = max(2 * count, count * needed // max(room or needed, 1))
        log.info("%d parts of a batch take %.2f GiB, more than there is", count, needed / 2**30)
        count = next((n for n in counts if n >= smallest), num_rows)
