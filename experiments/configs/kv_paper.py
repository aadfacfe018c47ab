"""KV retrieval rows of the paper: `kv_paper.py:n8_k2` is GradMem, N = 8 pairs, K = 2 WRITE steps.

`rmt_n8_k1` is RMT, `full_context_n8_k1` the Transformer that keeps its context. The paper's alpha
is taken from the scripts of the official code where they name one. They name none for K = 1; 0.4,
their most frequent value elsewhere, stands in. Curricula are the paper's: GradMem starts N = 64 and
96 from 32 pairs, RMT starts from 4.
"""

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.arguments import parse
from gradmem_jax.config import require

NUM_PAIRS = (4, 8, 16, 32, 64, 96)
NUM_WRITE_STEPS = {"rmt": (1, 2, 3, 4, 5), "full_context": (1,), "gradmem": (1, 2, 5)}


def get_config(arguments: str = "n4_k2") -> ConfigDict:
    """Returns the configuration of a row."""
    named = (method for method in NUM_WRITE_STEPS if arguments.startswith(f"{method}_"))
    method = next(named, "gradmem")
    num_pairs, num_write_steps = parse(arguments.removeprefix(f"{method}_"), "nk")
    require(
        num_pairs in NUM_PAIRS and num_write_steps in NUM_WRITE_STEPS[method],
        f"the paper has no {method} row N={num_pairs}, K={num_write_steps}: N is one of "
        f"{NUM_PAIRS}, K of {NUM_WRITE_STEPS[method]}. Override data.num_pairs and "
        "model.num_write_steps for others.",
    )
    config = default.get_config(method)
    config.data.num_pairs = num_pairs
    config.model.num_write_steps = num_write_steps
    config.evaluate_every = 5000
    if method == "gradmem":
        config.model.write_learning_rate = {
            1: 0.4,
            2: 0.04 if num_pairs <= 16 else 0.12,
            5: 0.08,
        }[num_write_steps]
    first = 4 if method == "rmt" else 32
    if num_pairs > first:
        config.curriculum.num_pairs = tuple(n for n in NUM_PAIRS if first <= n <= num_pairs)
    return config
