"""The settings that made small models learn to write, see docs/training.md."""

from ml_collections import ConfigDict


def apply(config: ConfigDict, alpha: float = 20.0, embedding_std: float = 1.0) -> None:
    """Sets them in a configuration of any method.

    Args:
        config: the configuration to change.
        alpha: where the learned write learning rate starts.
        embedding_std: deviation of the language model's embeddings, which M0 shares.
    """
    if "init" in config.lm:
        config.lm.init = "fan_in"
    if "memory_init_std" in config.model:
        config.model.memory_init_std = embedding_std
    if "write_learning_rate" in config.model:
        config.model.write_learning_rate = alpha
        config.model.learned_write_learning_rate = "shared"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.schedule = "cosine"
    config.optimizer.b2 = 0.99
