"""What devices send to each other in a compiled program, read from its text."""

import re

from experiments.planning import hlo
from gradmem_jax.checks import require

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
    program = hlo.read_program(text)
    totals: dict[str, float] = dict.fromkeys(hlo.COLLECTIVES, 0.0)

    def visit(name: str, times: float) -> None:
        computation = program.computations[name]
        for instruction in computation.values():
            if kind := instruction.collective:
                totals[kind] += times * _sent(kind, instruction)
            for called, turns in hlo.runs(program, computation, instruction):
                require(
                    turns is not None or not _sends(program, called),
                    f"the loop around {called!r} holds collectives and has no known length.",
                )
                visit(called, times * max(turns or 1, 1))  # each branch of a conditional whole

    visit(program.entry, 1)
    return {kind: size for kind, size in totals.items() if size}


def _sent(kind: str, instruction: hlo.Instruction) -> float:
    require(not instruction.is_started, f"{instruction.opcode} is asynchronous; compile for CPU.")
    groups = _GROUPS.search(instruction.text)
    n = (groups[1].count(",") + 1 if groups[1] else int(groups[2])) if groups else 2
    share = (n - 1) / n
    factor = {"all-reduce": 2 * share, "reduce-scatter": n * share, "collective-permute": 1.0}
    return factor.get(kind, share) * instruction.bytes


def _sends(program: hlo.Program, name: str) -> bool:
    """Whether a computation, or one that it runs, holds a collective."""
    computation = program.computations[name]
    return any(
        instruction.collective is not None
        or any(_sends(program, called) for called, _ in hlo.runs(program, computation, instruction))
        for instruction in computation.values()
    )
