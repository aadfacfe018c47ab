"""bAbI QA1 to QA5 with small models from scratch: GradMem, RMT and the full context.

The files are found by GRADMEM_DATA_DIR, which holds babi/.
"""

from experiments.sweep import Run

METHODS = ("gradmem_k2", "full_context", "rmt_k1")


def get_runs() -> list[Run]:
    """Returns the runs, short contexts first."""
    return [
        Run(f"qa{qa}_{method}", f"experiments/configs/babi_small.py:qa{qa}_{method}")
        for qa in (4, 1, 5, 2, 3)
        for method in METHODS
    ]
