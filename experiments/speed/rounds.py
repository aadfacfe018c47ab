"""Settings measured in rounds, in turn with the official code."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.speed import child_processes
from experiments.speed.reference import Reference
from experiments.speed.setting import Setting


def measure_rounds(
    kind: str, settings: Mapping[int, Setting], rounds: int, reference: Reference | None
) -> list[dict[str, Any]]:
    """Measures settings, the official code first in every round if there is one.

    Args:
        kind: "step" or "inference".
        settings: by number of WRITE steps.
        rounds: how often.
        reference: the official code; None leaves it out.

    Returns:
        For each setting what, write_steps, setting, rounds, and all rounds as one in `ours` and
        `reference`.
    """
    rows = []
    for k, setting in settings.items():
        measured: dict[str, list[child_processes.Measured]] = {"reference": [], "ours": []}
        for _ in range(rounds):
            if reference is not None:
                measured["reference"].append(reference.measure(kind, setting))
                child_processes.report(f"{kind}, K = {k}, official", measured["reference"][-1])
            measured["ours"].append(child_processes.measure(kind, setting))
            child_processes.report(f"{kind}, K = {k}", measured["ours"][-1])
        row: dict[str, Any] = {"what": kind, "write_steps": k, "rounds": measured}
        for name, results in measured.items():
            if results:
                row[name] = child_processes.summarise(results)
        rows.append(row | {"setting": dataclasses.asdict(setting)})
    return rows
