"""What to change where a step does not fit: each way is compiled before it is named."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from experiments.planning.machines import Topology
from experiments.planning.step_plan import StepPlan, plan_step
from experiments.planning.work import Work
from gradmem_jax.checks import AUTOMATIC


def find_remedy(work: Work, topology: Topology, found: StepPlan) -> StepPlan | None:
    """Returns the plan of the same step with settings that fit, the cheapest first; None: none do.

    More parts cost nothing but smaller products, remat computes a forward pass again, layers that
    gather their own parameters send them for every pass, and bfloat16 changes numbers; so they are
    tried in this order.
    """
    for changed in _changes(work, found):
        plan = plan_step(changed, topology)
        if plan.fits:
            return plan
    return None


def _changes(work: Work, found: StepPlan) -> Iterator[Work]:
    """Ways to take less, each with as many parts as it needs."""
    lm = work.model.config.lm
    given, work = work.num_micro_batches, dataclasses.replace(work, num_micro_batches=AUTOMATIC)
    if given != AUTOMATIC:
        yield work
    changes: dict[str, Any] = {}
    if lm.remat not in ("auto", "full"):
        changes["remat"] = "full"
        yield work.with_lm(**changes)
    if found.gathered and getattr(lm, "gather", "layer") == "step":
        changes["gather"] = "layer"
        yield work.with_lm(**changes)
    if lm.dtype == "float32":
        yield work.with_lm(**changes, dtype="bfloat16")


def describe(plan: StepPlan) -> str:
    """The settings of a plan as flags of a run."""
    return " ".join(
        f"--config.{name if name == 'num_micro_batches' else f'lm.{name}'}={value}"
        for name, value in plan.settings.items()
    )
