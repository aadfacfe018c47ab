"""The CPU table of docs/results.md: every method at N = 4 and N = 8 pairs, three seeds."""

from typing import Any

from experiments.configs.kv_small import FIRST_PAIRS
from experiments.sweep import Run, chain, seeds

ROWS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("gradmem_k5", "gradmem", "k5", {}),
    ("gradmem_k2", "gradmem", "k2", {}),
    ("rmt_k2", "rmt", "k2", {}),
    ("gradmem_k1", "gradmem", "k1", {}),
    ("full_context", "full_context", "k1", {}),
    ("gradmem_k2_first_order", "gradmem", "k2", {"model.gradient_mode": "first"}),
    ("rmt_k1", "rmt", "k1", {}),
    ("armt", "armt", "k1", {}),
    ("mamba", "mamba", "k1", {}),
    ("lact", "lact", "k1", {}),
    ("mamba2", "mamba2", "k1", {}),
    ("ttt_linear", "ttt_linear", "k1", {}),
    ("kv_prefix_k2", "kv_prefix", "k2", {}),
    ("warm_start_k2", "warm_start", "k2", {}),
)


def get_runs() -> list[Run]:
    """Returns the runs, the rows of seed 0 first."""
    runs = []
    for seed in range(3):
        for name, method, steps, overrides in ROWS:
            sizes = (8, 4) if FIRST_PAIRS.get(method) == 8 else (4, 8)
            row = [
                Run(
                    f"{name}_n{n}",
                    f"experiments/configs/kv_small.py:{method}_n{n}_{steps}",
                    overrides,
                )
                for n in sizes
            ]
            runs += seeds(chain(row), [seed])
    return runs
