"""A training step of many chips, on paper."""

import dataclasses

from experiments.speed.flops import Products, SampleProducts, training_flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a projection assumes of a chip.

    Attributes:
        flops: FLOP/s at peak.
        utilization: share of the peak that a step reaches.
        bandwidth: bytes/s that it sends along a ring.
    """

    flops: float
    utilization: float
    bandwidth: float


def project(
    param_bytes: float, step_flops: float, chips: int, chip: Chip, latency: float = 1e-6
) -> dict[str, float]:
    """Predicts a step of `chips` chips along data or fsdp, which send the same.

    Args:
        param_bytes: of the gathered parameters, and of their gradient.
        step_flops: of the samples of one chip.
        chips: how many there are.
        chip: what one can.
        latency: seconds of each of the 2 (chips - 1) hops of a ring.

    Returns:
        Seconds of compute and of communication, and the efficiency, compute over step, if none of
        the communication is hidden behind compute and if all is that can be.
    """
    compute = step_flops / (chip.flops * chip.utilization)
    sent = 2 * (chips - 1) / chips * param_bytes
    talk = sent / chip.bandwidth + 2 * (chips - 1) * latency
    return {
        "chips": chips,
        "compute_seconds": compute,
        "communication_seconds": talk,
        "efficiency_nothing_hidden": compute / (compute + talk),
        "efficiency_all_hidden": compute / max(compute, talk),
    }


def step_flops(
    num_weights: int, num_samples: int, write_tokens: int, read_tokens: int, num_write_steps: int
) -> float:
    """Operations of a step's products with weights; attention, left out, only adds compute.

    A forward pass takes 2 a weight and token; experiments/speed/flops.py says how many passes
    there are.
    """
    write, read = (Products(2 * num_weights * n, 0) for n in (write_tokens, read_tokens))
    nothing_within = SampleProducts(Products(0, 0), write, read)  # as with `scan_layers`
    return float(num_samples * training_flops(nothing_within, num_write_steps))
