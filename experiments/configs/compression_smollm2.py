"""Text compression with SmolLM2 135M, frozen, for CPU: `compression_smollm2.py:spans2_k1_m2`.

Cells are named as in compression_small.py. Needs `--config.pretrained=SmolLM2-135M-Instruct.gguf`
and real text as `--config.data.data_dir`. A step of 32 spans of 2 tokens takes 5 s on one core.

M0 and control tokens start three times as long as embeddings, where the WRITE loss is smoother;
alpha is where one step of the untrained model lowers that loss most (docs/notebook.md). Muon, since
its update of a layer does not grow with the layer's width.
"""

from ml_collections import ConfigDict

from experiments.configs import compression_small, recipe

ARGUMENTS = compression_small.ARGUMENTS


def get_config(arguments: str = "spans2_k1_m2") -> ConfigDict:
    """Returns the configuration of a cell."""
    config = compression_small.get_config(arguments)
    recipe.apply(config, alpha=0.1, embedding_std=0.4)
    config.model.write_head = False  # 28 million more parameters, all of them trained
    config.num_steps = 900
    config.log_every = 10
    config.evaluate_every = 100
    config.num_eval_samples = 64
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    return config
