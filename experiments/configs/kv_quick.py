"""The small run of the README: 4 pairs of 2+2 symbols out of 62 in 8 memory vectors.

It takes minutes on two CPU cores.

`kv_quick.py:rmt` and the other names of gradmem_jax/methods.py train those in the same way.
"""

from ml_collections import ConfigDict

from experiments.configs import default, recipe
from experiments.configs.arguments import Arguments
from gradmem_jax.methods import METHODS

ARGUMENTS = Arguments("rmt", methods=tuple(METHODS))


def get_config(arguments: str = "gradmem") -> ConfigDict:
    """Returns the configuration."""
    config = default.get_config(ARGUMENTS.parse(arguments).method)
    config.num_steps = 800
    config.batch_size = 32
    config.evaluate_every = 200
    config.num_eval_samples = 1000
    config.stop_at_exact_match = 0.97
    config.lm.width = 64
    config.data.num_pairs = 4
    config.data.queries_per_context = 4
    recipe.apply(config)
    return config
