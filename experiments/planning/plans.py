"""Plans of several steps for several machines, with what would fit where they do not: a table."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments.planning.machines import GIB, Topology
from experiments.planning.remedies import describe, find_remedy
from experiments.planning.step_plan import StepPlan, plan_step
from experiments.planning.work import Work
from experiments.program import files, formatting
from experiments.program.console import log
from gradmem_jax.checks import require
from gradmem_jax.storage.writing import write_text

# Of a language model, that flags may change.
FIELDS = ("remat", "dtype", "matmul_precision", "gather", "attention")


def works_by_batch_size(
    find: Callable[[int | None], Iterable[Work]], batch_sizes: Sequence[int]
) -> Iterator[Work]:
    """Steps of all batch sizes.

    Args:
        find: the steps of a batch size of all devices together; None for their own.
        batch_sizes: what to find; none takes their own.

    Raises:
        ValueError: a batch is of no sample.
    """
    require(
        all(size >= 1 for size in batch_sizes),
        f"--batch_sizes={','.join(map(str, batch_sizes))} must be 1 or more samples each.",
    )
    for size in batch_sizes or (None,):
        yield from find(size)


def changed(work: Work, settings: Sequence[str], num_micro_batches: int | None = None) -> Work:
    """A step with other settings.

    Args:
        work: the step.
        settings: as in "remat=full", with names of `FIELDS`.
        num_micro_batches: parts of each device's batch; None for the step's own.

    Raises:
        ValueError: a setting is none of these, or has a wrong value.
    """
    values: dict[str, Any] = dict(text.partition("=")[::2] for text in settings)
    unknown = sorted(values.keys() - {*FIELDS})
    require(
        not unknown and all(values.values()),
        f"--lm={','.join(settings)} must be of name=value, with names of {', '.join(FIELDS)}.",
    )
    work = work.with_lm(**values)
    if num_micro_batches is not None:
        work = dataclasses.replace(work, num_micro_batches=num_micro_batches)
    return work


def make_plans(works: Iterable[Work], topology: Topology, remedies: bool) -> Iterator[StepPlan]:
    """Plans steps for a machine; behind one that does not fit comes the same that does, if any.

    Args:
        works: the steps.
        topology: the machine.
        remedies: whether settings that fit are sought.
    """
    for work in works:
        plan = plan_step(work, topology)
        yield plan
        log.info("%s on %s: %.2f GiB", plan.work, plan.topology, plan.total / GIB)
        if remedies and not plan.fits:
            remedy = find_remedy(work, topology, plan)
            said = "nothing tried fits" if remedy is None else describe(remedy)
            log.info("%s does not fit; what does: %s", plan.work, said)
            if remedy is not None:
                yield remedy


def _gib(size: float | None) -> float | None:
    return None if size is None else size / GIB


def _numbers(settings: Mapping[str, Any]) -> str:
    """Dtype of a plan, and how its products of float32 are taken if not exactly."""
    precision = settings["matmul_precision"]
    is_exact = settings["dtype"] != "float32" or precision == "highest"
    return settings["dtype"] if is_exact else f"float32, {precision}"


def table(plans: Sequence[StepPlan]) -> str:
    """Formats plans, a line each."""
    head = ["step", "on", "B", "parts", "remat", "dtype", "gather", "fits", "GiB of", "parameters"]
    head += ["optimizer", "gathered", "temporary", "TFLOP", "GB moved", "ms", "bound by"]
    head += ["GB sent", "compile s"]
    rows = [
        [
            p.work,
            p.topology,
            p.batch_size,
            p.settings["num_micro_batches"],
            p.settings["remat"],
            _numbers(p.settings),
            p.settings["gather"],
            "yes" if p.fits else "NO",
            f"{p.total / GIB:.2f} of {p.available / GIB:.1f}",
            *map(_gib, (p.parameters, p.optimizer, p.gathered, p.temporary)),
            None if p.flops is None else p.flops / 1e12,
            None if p.moved is None else p.moved / 1e9,
            None if p.seconds is None else p.seconds * 1e3,
            p.bound_by,
            sum(p.collectives.values()) / 1e9,
            round(p.compile_seconds),
        ]
        for p in plans
    ]
    return formatting.markdown(head, rows)


def write_plans(out: pathlib.Path, plans: Sequence[StepPlan]) -> None:
    """Writes plans as JSON and as a table."""
    rows = [dataclasses.asdict(plan) for plan in plans]
    files.write_results(files.with_ending(out, ".json"), {"plans": rows})
    write_text(files.with_ending(out, ".md"), table(plans) + "\n")
