"""What devices send to each other in a compiled program, read from its text."""

import math
import re
from collections.abc import Iterator

from gradmem_jax.checks import require

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = re.compile(r"\d+")
_OPERATION = re.compile(r"= (?P<shape>.+?) (?P<name>[a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|calls|to_apply|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}|replica_groups=\[\d+,(\d+)\]<=")


def sent_bytes(text: str) -> dict[str, float]:
    """Returns the bytes that each device sends, by kind of collective, rings assumed.

    In a ring of n devices an all-reduce of an array sends 2 (n - 1) / n of its bytes, an all-gather
    and a reduce-scatter (n - 1) / n of the whole array, n times as large as a device's part.

    Args:
        text: `compiled.as_text()` of `jax.jit(...).lower(...).compile()`, without asynchronous
            collectives, as CPU programs are.

    Raises:
        ValueError: a loop around a collective has no known length, or collectives are asynchronous.
    """
    computations = _computations(text)
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    totals: dict[str, float] = dict.fromkeys(KINDS, 0.0)

    def visit(name: str, times: int) -> None:
        for kind, size in _collectives(computations[name][1]):
            totals[kind] += times * size
        for called, trips in _calls(computations[name][1], computations):
            require(
                trips is not None or not _sends(called, computations),
                f"the loop around {called!r} holds collectives and has no known length.",
            )
            visit(called, times * (trips or 1))

    visit(entry, 1)
    return {kind: totals[kind] for kind in KINDS if totals[kind]}


def _computations(text: str) -> dict[str, tuple[bool, list[str]]]:
    """The lines of each computation by its name, and whether it is the program's entry."""
    found: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            lines = []
            found[header[2]] = (header[1] is not None, lines)
        else:
            lines.append(line)
    return found


def _collectives(lines: list[str]) -> Iterator[tuple[str, float]]:
    for line in lines:
        operation = _OPERATION.search(line)
        if not operation:
            continue
        kind = operation["name"]
        require(
            not kind.endswith("-start") or kind.removesuffix("-start") not in KINDS,
            f"{kind} is asynchronous; compile for CPU.",
        )
        if kind not in KINDS:
            continue
        size = _bytes(operation["shape"])
        groups = _GROUPS.search(line)
        n = (groups[1].count(",") + 1 if groups[1] else int(groups[2])) if groups else 2
        share = (n - 1) / n
        factor = {"all-reduce": 2 * share, "reduce-scatter": n * share, "collective-permute": 1.0}
        yield kind, factor.get(kind, share) * size


def _calls(
    lines: list[str], computations: dict[str, tuple[bool, list[str]]]
) -> Iterator[tuple[str, int | None]]:
    """The computations that lines call, with how often, None if that is not known."""
    for line in lines:
        operation = _OPERATION.search(line)
        if not operation or operation["name"] in KINDS:
            continue
        trips: int | None = 1
        if operation["name"] == "while":
            known = _TRIPS.search(line)
            trips = int(known[1]) if known else None
        branches = _BRANCHES.search(line)
        names = _CALLED.findall(line) + re.findall(r"[\w.\-]+", branches[1] if branches else "")
        yield from ((name, trips) for name in names if name in computations)


def _sends(name: str, computations: dict[str, tuple[bool, list[str]]]) -> bool:
    lines = computations[name][1]
    return any(True for _ in _collectives(lines)) or any(
        _sends(called, computations) for called, _ in _calls(lines, computations)
    )


def _bytes(shape: str) -> int:
    """Bytes of the arrays of a shape such as `(f32[2,3]{1,0}, s32[])`."""
    total = 0
    for dtype, sizes in _ARRAY.findall(shape):
        bits = 8 if dtype == "pred" else int(_BITS.findall(dtype)[0])
        total += bits * math.prod(int(size) for size in sizes.split(",") if size) // 8
    return total
