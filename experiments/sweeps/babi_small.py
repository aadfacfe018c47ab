"""bAbI QA1 to QA5 with small models: the full context, and from its language model GradMem and RMT.

The files are found by GRADMEM_DATA_DIR, which holds babi/.
"""

from experiments.sweeps.run_list import Run

METHODS = ("gradmem_k2", "rmt_k1")


def get_runs() -> list[Run]:
    """Returns the runs, short contexts first."""
    runs: list[Run] = []
    for qa in (4, 1, 5, 2, 3):
        cell = f"experiments/configs/babi_small.py:qa{qa}_"
        first = f"qa{qa}_full_context"
        runs.append(Run(first, f"{cell}full_context"))
        runs += [Run(f"qa{qa}_{method}", cell + method, after=first) for method in METHODS]
    return runs
