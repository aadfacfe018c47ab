"""Longer runs beside those of kv_small.py, and with fewer heads: docs/notebook.md says why."""

from experiments.sweeps.run_list import Run

TWO_HEADS = {"lm.num_heads": 2}


def get_runs() -> list[Run]:
    """Returns the runs."""
    config = "experiments/configs/kv_small.py:"
    curriculum = {"seed": 1, "num_steps": 6000, "curriculum.num_pairs": (1, 2, 4, 8)}
    constant = {"optimizer.schedule": "constant"}
    return [
        Run("rmt_long", f"{config}rmt_n4_k1", {"num_steps": 5000}),
        Run("full_heads", f"{config}full_context_n8", TWO_HEADS | constant),
        Run("two_heads", f"{config}gradmem_n4_k2", TWO_HEADS),
        Run("full_curriculum", f"{config}full_context_n8", TWO_HEADS | curriculum),
    ]
