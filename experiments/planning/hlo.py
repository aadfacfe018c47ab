"""What a compiled program says of itself: bytes that it moves and sends, loops counted as they run.

XLA's own cost analysis counts the body of a loop once, and has none for GPUs. This one reads the
text of the optimized program. Memory traffic is what every instruction reads and writes, a fusion
being one; of arrays that are sliced or updated in place it is the slice. What a TPU keeps in its
vector memory, `S(1)` in a layout, is not counted.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s32": 4, "u32": 4, "f32": 4, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# They move nothing: names for parts of arrays, what is known beforehand, and calls, whose
# computations are counted.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "iota", "opt-barrier", "domain"),
    *("all-reduce-done", "all-gather-done", "collective-permute-done", "copy-done", "async-done"),
}


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        name: its name.
        shape: its shape, as the text has it.
        opcode: what it does.
        arguments: what stands in its parentheses.
        text: all that stands behind them.
        is_root: whether it is the computation's result.
    """

    name: str
    shape: str
    opcode: str
    arguments: str
    text: str
    is_root: bool

    @property
    def collective(self) -> str | None:
        """Which of `COLLECTIVES` it does or starts, if any."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def is_started(self) -> bool:
        """Whether it only starts what another instruction ends; its shape lists operands too."""
        return self.opcode.endswith("-start")

    @property
    def operands(self) -> list[str]:
        """Names of what it takes."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def bytes(self) -> float:
        """Bytes of main memory that its result takes."""
        return shape_bytes(self.shape)


class Program(NamedTuple):
    """A program's computations.

    Attributes:
        computations: instructions by name, of each computation.
        entry: the computation that is called.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str


class Traffic(NamedTuple):
    """What a program moves on each device.

    Attributes:
        memory: bytes read from main memory and written to it.
        collectives: bytes of the results of each kind of collective.
    """

    memory: float
    collectives: dict[str, float]


def shape_bytes(shape: str) -> float:
    """Bytes of an array or a tuple, without what lies in a TPU's vector memory."""
    arrays = (match for match in _ARRAY.finditer(shape) if "S(1)" not in (match[3] or ""))
    return sum(map(_array_bytes, arrays))


def _array_bytes(array: re.Match[str]) -> float:
    return _item_bytes(array[1]) * math.prod(int(n) for n in array[2].split(",") if n)


def _item_bytes(kind: str) -> float:
    bits = re.search(r"\d+", kind)
    return _SIZES.get(kind, int(bits[0]) / 8 if bits else 0)


def read_program(text: str) -> Program:
    """Reads the text of an optimized program."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _read_instruction(found[2], found[3], bool(found[1]))
            current[instruction.name] = instruction
    return Program(computations, entry)


def _read_instruction(name: str, rest: str, is_root: bool) -> Instruction:
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    return Instruction(name, shape, opcode, rest[len(opcode) + 1 : end], rest[end + 1 :], is_root)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis is closed that opens at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text)


def measure(text: str) -> Traffic:
    """Adds up what a program moves, a loop's body as often as it runs.

    A loop whose number of turns is not known counts once.
    """
    program = read_program(text)
    memory, collectives = 0.0, collections.defaultdict[str, float](float)
    for name, times in _times_run(program).items():
        computation = program.computations[name]
        for instruction in computation.values():
            if kind := instruction.collective:
                collectives[kind] += times * _sent(instruction)
            if instruction.opcode not in _FREE:
                memory += times * _moved(program, computation, instruction)
    return Traffic(memory, dict(collectives))


def _times_run(program: Program) -> dict[str, float]:
    """How often each computation runs that is not part of one instruction of another."""
    times = collections.defaultdict[str, float](float)

    def run(name: str, count: float) -> None:
        times[name] += count
        computation = program.computations.get(name, {})
        for instruction in computation.values():
            for called, turns in runs(program, computation, instruction):
                run(called, count * (turns or 1))

    run(program.entry, 1)
    return {name: count for name, count in times.items() if name in program.computations}


def runs(
    program: Program, computation: Mapping[str, Instruction], instruction: Instruction
) -> Iterator[tuple[str, float | None]]:
    """Computations that an instruction runs, and how often; None if that is not known."""
    if instruction.opcode == "while":
        parts = dict(_CALLED.findall(instruction.text))
        trips = _TRIPS.search(instruction.text)
        condition = program.computations.get(parts["condition"], {})
        yield (
            parts["body"],
            int(trips[1]) if trips else _turns(condition, computation, instruction),
        )
    elif instruction.opcode == "call" or instruction.opcode.startswith("async-start"):
        yield from ((name, 1.0) for _, name in _CALLED.findall(instruction.text))
    elif instruction.opcode == "conditional":  # the branches are as likely as one another
        branches = _BRANCHES.search(instruction.text)
        names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
        yield from ((name, 1 / len(names)) for name in names)


def _turns(
    condition: Mapping[str, Instruction],
    computation: Mapping[str, Instruction],
    loop: Instruction,
) -> int | None:
    """Turns of a loop that counts from 0 up to a constant, as JAX makes them; else None."""
    carried = computation.get(loop.operands[0])

    def constant(name: str) -> int | None:
        value = condition.get(name)
        while value is not None and value.opcode in ("copy", "bitcast", "get-tuple-element"):
            index = re.search(r"index=(\d+)", value.text)
            if value.opcode == "get-tuple-element" and index and carried is not None:
                value = computation.get(carried.operands[int(index[1])])
            else:
                value = condition.get(value.operands[0]) or computation.get(value.operands[0])
        is_number = value is not None and value.opcode == "constant" and value.arguments.isdecimal()
        return int(value.arguments) if value is not None and is_number else None

    roots = [x for x in condition.values() if x.is_root and "direction=LT" in x.text]
    limits = [constant(name) for root in roots for name in root.operands[1:]]
    return next((limit for limit in limits if limit is not None), None)


def _sent(instruction: Instruction) -> float:
    """Bytes of a collective's result; what starts one also lists its operands."""
    parts = [_array_bytes(match) for match in _ARRAY.finditer(instruction.shape)]
    return max(parts, default=0.0) if instruction.is_started else sum(parts)


def _started(instruction: Instruction) -> float:
    """Bytes of main memory that what is started here writes; its shape lists operands too."""
    arrays = [match[0] for match in _ARRAY.finditer(instruction.shape)]
    return shape_bytes(arrays[min(instruction.opcode != "copy-start", len(arrays) - 1)])


def _moved(
    program: Program, computation: Mapping[str, Instruction], instruction: Instruction
) -> float:
    """Bytes that an instruction reads and writes."""
    read = {
        i: computation[name].bytes if name in computation else 0.0
        for i, name in enumerate(instruction.operands)
    }
    written = _started(instruction) if instruction.is_started else instruction.bytes
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if instruction.opcode == "dynamic-update-slice":
        return 2 * read.get(1, 0.0)
    if instruction.opcode == "fusion":
        called = _CALLED.search(instruction.text)
        body = program.computations.get(called[2], {}) if called else {}
        for i, size in _read_in_part(body).items():
            read[i] = min(size, read.get(i, 0.0))
        written = min(written, _written_in_part(body))
    return sum(read.values()) + written


def _read_in_part(body: Mapping[str, Instruction]) -> dict[int, float]:
    """Bytes of the parameters of a fusion that are only sliced, or updated in place, by number."""
    users = collections.defaultdict(list)
    for instruction in body.values():
        for place, operand in enumerate(instruction.operands):
            users[operand].append((place, instruction))
    parts = {}
    for instruction in body.values():
        through = _users_behind_bitcasts(users, instruction.name)
        if instruction.opcode == "parameter" and all(_uses_part(*user) for user in through):
            sliced = (x.bytes for _, x in through if x.opcode != "dynamic-update-slice")
            parts[int(instruction.arguments)] = sum(sliced)
    return parts


def _users_behind_bitcasts(
    users: Mapping[str, list[tuple[int, Instruction]]], name: str
) -> list[tuple[int, Instruction]]:
    found: list[tuple[int, Instruction]] = []
    for place, user in users.get(name, []):
        if user.opcode == "bitcast":
            found += _users_behind_bitcasts(users, user.name)
        else:
            found.append((place, user))
    return found


def _uses_part(place: int, user: Instruction) -> bool:
    return place == 0 and user.opcode in ("dynamic-slice", "slice", "dynamic-update-slice")


def _written_in_part(body: Mapping[str, Instruction]) -> float:
    """Bytes that a fusion writes: of an update in place, the update."""

    def size(instruction: Instruction) -> float:
        if instruction.opcode == "tuple":
            return sum(size(body[name]) for name in instruction.operands if name in body)
        if instruction.opcode == "bitcast" and instruction.operands[0] in body:
            return size(body[instruction.operands[0]])
        if instruction.opcode == "dynamic-update-slice" and instruction.operands[1] in body:
            return body[instruction.operands[1]].bytes
        return instruction.bytes

    roots = [instruction for instruction in body.values() if instruction.is_root]
    return size(roots[0]) if roots else math.inf
