"""The settings that made small models learn to write, see docs/training.md."""

from ml_collections import ConfigDict

from experiments.configs.default import set_known


def apply(config: ConfigDict, alpha: float = 20.0, embedding_std: float = 1.0) -> None:
    """Sets them in a configuration of any method.

    Args:
        config: the configuration to change.
        alpha: where the learned write learning rate starts.
        embedding_std: deviation of the language model's embeddings, which M0 shares.
    """
    set_known(config.lm, init="fan_in")
    set_known(config.model, memory_init_std=embedding_std)
    if "write_learning_rate" in config.model:
        config.model.write_learning_rate = alpha
        config.model.learned_write_learning_rate = "shared"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.schedule = "cosine"
    config.optimizer.b2 = 0.99
