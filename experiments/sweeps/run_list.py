"""The runs of a sweep, and lists of them: chains and seeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Run(NamedTuple):
    """One training run of a sweep.

    Attributes:
        name: its folder under --root.
        config: such as "experiments/configs/kv_paper.py:n8_k2".
        overrides: values by field, such as {"seed": 1, "model.num_write_steps": 2}.
        after: an earlier run, from whose best parameters this one starts; "" for none.
        stop_chain_below: with `after`, the result (see `Result`) that the earlier run must have
            reached, or have fallen to if it is a loss; otherwise this run, and those after it, are
            skipped.
    """

    name: str
    config: str
    overrides: Mapping[str, Any] = {}
    after: str = ""
    stop_chain_below: float | None = None


def chain(runs: Sequence[Run], stop_below: float | None = None) -> list[Run]:
    """Lets every run start from the one before it, if that reached `stop_below`."""
    later = [
        run._replace(after=before.name, stop_chain_below=stop_below)
        for before, run in zip(runs, runs[1:], strict=False)
    ]
    return [*runs[:1], *later]


def seeds(runs: Sequence[Run], values: Iterable[int]) -> list[Run]:
    """Repeats runs, chains too, with several seeds; names get the ending `_seed<value>`."""
    return [
        run._replace(
            name=f"{run.name}_seed{seed}",
            overrides={**run.overrides, "seed": seed},
            after=run.after and f"{run.after}_seed{seed}",
        )
        for seed in values
        for run in runs
    ]
