"""The paper's curriculum across runs: GradMem and RMT over N = 4 to 96 pairs, three seeds each.

Every run starts from the best parameters of the run with fewer pairs; a chain ends early when a
shorter context was not learned at all. (The paper starts GradMem's curriculum at 32 pairs.)
"""

from experiments.sweep import Run, chain, seeds

METHODS = {"gradmem": (1, 2, 5), "rmt": (1,)}
NUM_PAIRS = (4, 8, 16, 32, 64, 96)


def get_runs() -> list[Run]:
    """Returns 12 chains of 6 runs."""
    runs = []
    for method, num_write_steps in METHODS.items():
        prefix = "" if method == "gradmem" else f"{method}_"
        for k in num_write_steps:
            one_seed = chain(
                [
                    Run(
                        name=f"{method}_k{k}_n{n}",
                        config=f"experiments/configs/kv_paper.py:{prefix}n{n}_k{k}",
                        overrides={"curriculum.num_pairs": ()},
                    )
                    for n in NUM_PAIRS
                ],
                stop_below=0.1,
            )
            runs += seeds(one_seed, range(3))
    return runs
