"""KV retrieval rows of the paper: `kv_paper.py:n8_k2` is GradMem, N = 8 pairs, K = 2 WRITE steps.

Other methods stand in front, `rmt_n8_k1`, `armt_n8`, `mamba_n8`, `ttt_linear_n8`, `lact_n8`,
`full_context_n8`, `kv_prefix_n8_k2`; `n8_k2_m4` has 4 memory vectors instead of 8. Alpha, RMT's
projection and the learning rates are those of the official code's scripts where they name them.
They name no alpha for K = 1; 0.4, their most frequent value elsewhere, stands in. Curricula are
the paper's: GradMem starts N = 64 and 96 from 32 pairs, RMT and ARMT start from 4. experiments/
sweeps/kv_paper.py lists all runs.
"""

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.arguments import Arguments
from gradmem_jax.checks import require
from gradmem_jax.methods import BY_GRADIENT, METHODS

ARGUMENTS = Arguments(
    "rmt_n8_k2", methods=tuple(METHODS), method="gradmem", letters="nkm", needed="n"
)
NUM_PAIRS = (4, 8, 16, 32, 64, 96)
NUM_WRITE_STEPS = {"rmt": (1, 2, 3, 4, 5)} | dict.fromkeys(BY_GRADIENT, (1, 2, 5))
NUM_MEMORY_TOKENS = (1, 2, 4, 8)
FIRST_PAIRS = {"rmt": 4, "armt": 4}


def get_config(arguments: str = "n4_k2") -> ConfigDict:
    """Returns the configuration of a row."""
    _, _, method, numbers, _ = ARGUMENTS.parse(arguments)
    num_pairs, num_write_steps = numbers["n"], numbers.get("k", 1)
    allowed = NUM_WRITE_STEPS.get(method, (1,))
    require(
        num_pairs in NUM_PAIRS and num_write_steps in allowed,
        f"the paper has no {method} row N={num_pairs}, K={num_write_steps}: N is one of "
        f"{NUM_PAIRS}, K of {allowed}. Override data.num_pairs and model.num_write_steps for "
        "others.",
    )
    config = default.get_config(method)
    config.data.num_pairs = num_pairs
    config.model.num_write_steps = num_write_steps
    config.evaluate_every = 5000
    if "m" in numbers:
        require(
            "num_memory_tokens" in config.model and numbers["m"] in NUM_MEMORY_TOKENS,
            f"m={numbers['m']} is none of the paper's {NUM_MEMORY_TOKENS}, or {method!r} has no "
            "memory tokens.",
        )
        config.model.num_memory_tokens = numbers["m"]
    if method == "rmt":
        config.model.memory_projection = "proj"
        config.optimizer.warmup_steps = 2000
    if method == "mamba":
        config.optimizer.learning_rate = 3e-4
    if method in BY_GRADIENT:
        config.model.write_learning_rate = {
            1: 0.4,
            2: 0.04 if num_pairs <= 16 else 0.12,
            5: 0.08,
        }[num_write_steps]
    first = FIRST_PAIRS.get(method, 32)
    if num_pairs > first:
        config.curriculum.num_pairs = tuple(n for n in NUM_PAIRS if first <= n <= num_pairs)
    return config
