"""What is recomputed, and in how many parts a batch goes, so that a device has room for a step."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from experiments.program.console import log
from gradmem_jax.checks import AUTOMATIC
from gradmem_jax.memory.interface import MemoryModel

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


class Fitted(NamedTuple):
    """A step that is compiled, and how.

    Attributes:
        step: the compiled step.
        num_parts: of a device's batch.
        remat: what is recomputed, see `LMConfig`.
    """

    step: Any
    num_parts: int
    remat: str


def remats(setting: str) -> tuple[str, ...]:
    """What `lm.remat` lets one choose from, the fastest first."""
    return ("none", "full") if setting == "auto" else (setting,)


def compile_to_fit(
    lower: Callable[[int, str], Any], counts: Sequence[int], remats: Sequence[str], room: int | None
) -> Fitted:
    """Compiles a step with as little recomputed, and then in as few parts, as there is room for.

    It is the same choice whenever device, compiler and step are the same, so a run that goes on
    makes it again.

    Args:
        lower: from a number of parts and what is recomputed to the lowered step.
        counts: numbers of parts to choose from, in rising order.
        remats: what to choose from to recompute, in the order in which it is tried.
        room: bytes that a step may take; None takes the first of all.

    Raises:
        jax.errors.JaxRuntimeError: the compiler finds no room for any.
    """
    for remat in remats:
        is_last, at, error = remat == remats[-1], 0, None
        while True:
            count, step = counts[at], None
            try:
                step = lower(count, remat).compile()
                needed = total_bytes(step)
            except jax.errors.JaxRuntimeError as found:
                error, size = found, bytes_without_room(found)
                if size is None:
                    raise
                needed = size
            fits = step is not None and (room is None or needed <= room)
            at_end = count == counts[-1]
            if fits or (step is not None and at_end and is_last):
                return Fitted(step, count, remat)
            log.info(
                "%s, remat=%s: %.2f GiB, more than there is",
                "a batch" if count == AUTOMATIC else f"{count} parts of a batch",
                remat,
                needed / 2**30,
            )
            if at_end:
                break
            smallest = max(2 * count, count * needed // max(room or needed, 1))
            at = next((i for i, n in enumerate(counts) if n >= smallest), len(counts) - 1)
    assert error is not None
    raise error


def divisors(number: int) -> list[int]:
    """Numbers of equal parts that so many samples can be split into, in rising order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def with_lm(model: MemoryModel, **changes: Any) -> MemoryModel:
    """The same model with other values of some fields of its language model's configuration."""
    config = model.config
    lm = dataclasses.replace(config.lm, **changes)
    return dataclasses.replace(model, config=dataclasses.replace(config, lm=lm))
