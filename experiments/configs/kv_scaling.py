"""How far the recipe of kv_quick carries: a curriculum from 2 pairs up to N of 2+2 symbols.

The argument names the last N, as in `kv_scaling.py:n32` (the default); see docs/results.md.
"""

from ml_collections import ConfigDict

from experiments.configs import kv_quick
from experiments.configs.arguments import Arguments
from gradmem_jax.methods import METHODS

ARGUMENTS = Arguments("n32", methods=tuple(METHODS), method="gradmem", letters="n", needed="n")


def get_config(arguments: str = "n32") -> ConfigDict:
    """Returns the configuration."""
    row = ARGUMENTS.parse(arguments)
    num_pairs = row.numbers["n"]
    config = kv_quick.get_config(row.method)
    config.num_steps = 20_000
    config.evaluate_every = 250
    config.num_eval_samples = 256
    config.stop_at_exact_match = 0.95
    config.optimizer.schedule = "constant"
    config.data.num_pairs = num_pairs
    config.data.queries_per_context = num_pairs
    smaller = [n for n in (2, 4, 8, 16, 32, 64) if n < num_pairs]
    config.curriculum.num_pairs = (*smaller, num_pairs)
    return config
