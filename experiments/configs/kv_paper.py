"""GradMem's KV retrieval rows of the paper: `kv_paper.py:n8_k2` is N = 8 pairs, K = 2 WRITE steps.

The paper's alpha is taken from the scripts of the official code where they name one. They name none
for K = 1; 0.4, their most frequent value elsewhere, stands in. N = 64 and 96 start from 32.
"""

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.arguments import parse
from gradmem_jax.config import require

NUM_PAIRS = (4, 8, 16, 32, 64, 96)
NUM_WRITE_STEPS = (1, 2, 5)


def get_config(arguments: str = "n4_k2") -> ConfigDict:
    """Returns the configuration of a row."""
    num_pairs, num_write_steps = parse(arguments, "nk")
    require(
        num_pairs in NUM_PAIRS and num_write_steps in NUM_WRITE_STEPS,
        f"the paper has no row N={num_pairs}, K={num_write_steps}: N is one of {NUM_PAIRS}, K of "
        f"{NUM_WRITE_STEPS}. Override data.num_pairs and model.num_write_steps for others.",
    )
    config = default.get_config()
    config.data.num_pairs = num_pairs
    config.model.num_write_steps = num_write_steps
    config.model.write_learning_rate = {
        1: 0.4,
        2: 0.04 if num_pairs <= 16 else 0.12,
        5: 0.08,
    }[num_write_steps]
    config.evaluate_every = 5000
    if num_pairs > 32:
        config.curriculum.num_pairs = tuple(n for n in (32, 64, 96) if n <= num_pairs)
    return config
