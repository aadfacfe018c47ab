"""The recipe of kv_quick with 16 and 32 pairs, a run from the best parameters of the one before."""

from experiments.sweeps.run_list import Run, chain

COSINE = {"curriculum.num_pairs": (), "optimizer.schedule": "cosine"}


def get_runs() -> list[Run]:
    """Returns the runs."""
    config, eight = "experiments/configs/kv_scaling.py:", {"data.queries_per_context": 8}
    n16 = {"num_steps": 700, "optimizer.warmup_steps": 50}
    n32 = {"num_steps": 200, "optimizer.warmup_steps": 20, "num_micro_batches": 8}
    return chain(
        [
            Run("start", f"{config}n32", eight | {"num_steps": 1250}),
            Run("n16", f"{config}n16", COSINE | eight | n16),
            Run("n32", f"{config}n32", COSINE | eight | n32),
        ]
    )
