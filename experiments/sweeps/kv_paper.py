"""Every KV retrieval run of the paper, three seeds each; pick with --only=table1.*n32, say.

table1: all methods by N, GradMem without second order too; the curves over WRITE steps at
evaluation and of WRITE losses come with it. table7: Mamba with its state cut to 4096 floats.
table8: TTT-Linear and LaCT. layers: a prefix in every layer. memory: fewer memory vectors. tasks:
keys and values of one symbol out of 512, and noise between the pairs. Runs of more pairs start from
runs of fewer: GradMem, Mamba and the full context from 32 on, RMT and ARMT from 4 on.
"""

from collections.abc import Sequence
from typing import Any

from experiments.configs.kv_paper import FIRST_PAIRS, NUM_PAIRS, NUM_WRITE_STEPS
from experiments.sweeps.run_list import Run, chain, seeds

FIRST_ORDER = {"model.gradient_mode": "first"}
ONE_SYMBOL = {"data.key_length": 1, "data.value_length": 1, "data.alphabet_size": 512}


def _runs(
    name: str,
    method: str,
    numbers: str,
    num_pairs: Sequence[int],
    overrides: dict[str, Any] | None = None,
) -> list[Run]:
    """Runs of a method over N, chained as in the paper, with three seeds."""
    options = {"curriculum.num_pairs": ()} | (overrides or {})
    config = f"experiments/configs/kv_paper.py:{method}_n"
    runs = {n: Run(f"{name}_n{n}", f"{config}{n}{numbers}", options) for n in num_pairs}
    first = FIRST_PAIRS.get(method, 32)
    alone = [run for n, run in runs.items() if n < first]
    chained = chain([run for n, run in runs.items() if n >= first])
    return seeds([*alone, *chained], range(3))


def get_runs() -> list[Run]:
    """Returns all runs."""
    runs: list[Run] = []
    for method in ("full_context", "mamba", "armt"):
        runs += _runs(f"table1_{method}", method, "", NUM_PAIRS)
    for method in ("rmt", "gradmem"):
        for k in NUM_WRITE_STEPS[method]:
            runs += _runs(f"table1_{method}_k{k}", method, f"_k{k}", NUM_PAIRS)
    for k in (1, 2):
        name = f"table1_gradmem_k{k}_first_order"
        runs += _runs(name, "gradmem", f"_k{k}", (8, 16), FIRST_ORDER)
    runs += _runs("table7_mamba", "mamba", "", (8, 16, 32), {"lm.state_size": 4})
    for method in ("ttt_linear", "lact"):
        runs += _runs(f"table8_{method}", method, "", NUM_PAIRS[1:])
    for k in (1, 2, 5):
        runs += _runs(f"layers_kv_prefix_k{k}", "kv_prefix", f"_k{k}", (8, 16))
    for m in (1, 2, 4):
        for k in (1, 2, 5):
            runs += _runs(f"memory_gradmem_k{k}_m{m}", "gradmem", f"_k{k}_m{m}", (8, 16))
    for k in (1, 2, 5):
        runs += _runs(f"tasks_one_symbol_gradmem_k{k}", "gradmem", f"_k{k}", (8,), ONE_SYMBOL)
        for noise in (0.25, 0.5, 0.75):
            name = f"tasks_noise{round(100 * noise)}_gradmem_k{k}"
            runs += _runs(name, "gradmem", f"_k{k}", (8,), {"data.noise": noise})
    return runs
