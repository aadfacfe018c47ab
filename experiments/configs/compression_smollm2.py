"""Text compression with SmolLM2 135M, frozen, for CPU: `compression_smollm2.py:spans8_k2_m2`.

Cells are named as in compression_small.py. Needs `--config.pretrained=SmolLM2-135M-Instruct.gguf`
and real text as `--config.data.data_dir`. A step of 4 spans takes seconds on one core.
"""

from ml_collections import ConfigDict

from experiments.configs import compression_small, recipe

ARGUMENTS = compression_small.ARGUMENTS


def get_config(arguments: str = "spans8_k1_m1") -> ConfigDict:
    """Returns the configuration of a cell."""
    config = compression_small.get_config(arguments)
    recipe.apply(config, alpha=0.08, embedding_std=0.14)
    config.num_steps = 300
    config.batch_size = 4
    config.log_every = 10
    config.evaluate_every = 50
    config.num_eval_samples = 64
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    return config
