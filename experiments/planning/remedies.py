"""What to change where a step does not fit: each way is compiled before it is named."""

import dataclasses
import math
from collections.abc import Iterator

from experiments.planning.machines import Topology
from experiments.planning.step_plan import StepPlan, plan_step
from experiments.planning.work import Work
from gradmem_jax.parallel import sharding

_MOST_TRIES = 6  # each takes as long as a compile


def find_remedy(work: Work, topology: Topology, found: StepPlan) -> StepPlan | None:
    """Returns the plan of the same step with settings that fit, the cheapest first; None: none do.

    More parts cost nothing but smaller products, remat computes a forward pass again, and bfloat16
    changes numbers; so they are tried in this order.
    """
    for _, changed in zip(range(_MOST_TRIES), _changes(work, topology, found), strict=False):
        plan = plan_step(changed, topology)
        if plan.fits:
            return plan
    return None


def _changes(work: Work, topology: Topology, found: StepPlan) -> Iterator[Work]:
    mesh = sharding.make_mesh(work.mesh, topology.devices)
    rows = work.batch_size // sharding.num_batch_shards(mesh)
    fixed = found.total - found.temporary
    room = max(found.available - fixed - found.gathered, 1)
    wanted = max((found.temporary - found.gathered) / room, 1.0)
    parts = [n for n in range(2, rows + 1) if rows % n == 0]
    enough = [n for n in parts if n >= wanted] or parts[-1:]
    lm = work.model.config.lm
    variants = [work]
    if lm.remat != "full":
        variants.append(work.with_lm(remat="full"))
    if lm.dtype == "float32":
        variants.append(work.with_lm(remat="full", dtype="bfloat16"))
    for variant in variants:
        counts = [*enough[:1], *parts[-1:]] if variant is work else [1, *enough[:1], *parts[-1:]]
        for count in dict.fromkeys(counts):
            yield dataclasses.replace(variant, num_micro_batches=count)


def describe(plan: StepPlan) -> str:
    """The settings of a plan as flags of a run."""
    names = {"num_micro_batches": "num_micro_batches", "remat": "lm.remat", "dtype": "lm.dtype"}
    return " ".join(f"--config.{names[name]}={x}" for name, x in plan.settings.items())


def share(plan: StepPlan) -> float:
    """How much of what a device has a step takes."""
    return plan.total / plan.available if plan.available else math.inf
