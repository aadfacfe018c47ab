"""All methods on a small task, as in docs/results.md; pick with --only.

Every method at N = 4 and N = 8 pairs, three seeds (the paper's Tables 1 and 8). state: Mamba with a
smaller state (Table 7). memory: other numbers of memory vectors. noise: symbols between the pairs.
segments: 8 pairs written in 2, 4 or 8 parts, one after the other.
"""

from typing import Any

from experiments.configs.kv_small import FIRST_PAIRS
from experiments.sweeps.run_list import Run, chain, seeds

FIRST_ORDER = {"model.gradient_mode": "first"}
TABLE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("gradmem_k5", "gradmem_n{n}_k5", {}),
    ("gradmem_k2", "gradmem_n{n}_k2", {}),
    ("rmt_k2", "rmt_n{n}_k2", {}),
    ("gradmem_k1", "gradmem_n{n}_k1", {}),
    ("full_context", "full_context_n{n}", {}),
    ("gradmem_k2_first_order", "gradmem_n{n}_k2", FIRST_ORDER),
    ("rmt_k1", "rmt_n{n}_k1", {}),
    ("armt", "armt_n{n}", {}),
    ("mamba", "mamba_n{n}", {}),
    ("lact", "lact_n{n}", {}),
    ("mamba2", "mamba2_n{n}", {}),
    ("ttt_linear", "ttt_linear_n{n}", {}),
    ("kv_prefix_k2", "kv_prefix_n{n}_k2", {}),
    ("warm_start_k2", "warm_start_n{n}_k2", {}),
)


def _row(name: str, argument: str, overrides: dict[str, Any], seed: int) -> list[Run]:
    """The chain of a method over both sizes."""
    method = argument.split("_n{n}")[0]
    sizes = (8, 4) if FIRST_PAIRS.get(method) == 8 else (4, 8)
    config = "experiments/configs/kv_small.py:" + argument
    row = [Run(f"{name}_n{n}", config.format(n=n), overrides) for n in sizes]
    return seeds(chain(row), [seed])


def get_runs() -> list[Run]:
    """Returns the runs, seed 0 of the table first."""
    runs = []
    for seed in range(3):
        for name, argument, overrides in TABLE:
            runs += _row(name, argument, overrides, seed)
    for size in (1, 2):
        runs += _row(f"state_mamba{size}", "mamba_n{n}", {"lm.state_size": size}, 0)
    for m in (1, 4):
        for k in (1, 2, 5):
            runs += _row(f"memory_gradmem_k{k}_m{m}", f"gradmem_n{{n}}_k{k}_m{m}", {}, 0)
    for noise in (0.25, 0.5):
        name = f"noise{round(100 * noise)}_gradmem_k2"
        runs += _row(name, "gradmem_n{n}_k2", {"data.noise": noise}, 0)
    parts = [
        Run(f"segments_gradmem_k2_t{t}", f"experiments/configs/kv_small.py:gradmem_n8_k2_t{t}")
        for t in (2, 4, 8)
    ]
    after = "gradmem_k2_n8_seed0"
    return runs + [part._replace(after=after) for part in parts]
