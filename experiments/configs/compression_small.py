"""Text compression with stories260K, for CPU: `compression_small.py:spans16_k2_m1`.

Spans of 16 tokens in 1 memory vector of the frozen model's width (64 floats), adapters in WRITE;
`_frozen` behind it leaves the adapters out, so that only M0, the control tokens, the WRITE head and
the memory projection are trained. Needs `--config.pretrained=stories260K.bin` and, as
`--config.data.data_dir`, text that the model can model, such as experiments.sample draws from it.
"""

from ml_collections import ConfigDict

from experiments.configs import default, recipe
from experiments.configs.arguments import Arguments

ARGUMENTS = Arguments(
    "spans16_k2_m1", cells=("spans#",), letters="km", needed="km", switch="frozen"
)


def get_config(arguments: str = "spans8_k2_m1") -> ConfigDict:
    """Returns the configuration of a cell."""
    _, num_tokens, _, numbers, without_adapters = ARGUMENTS.parse(arguments)
    config = default.get_config("gradmem", "text_spans", pretrained=True)
    config.data.num_tokens = num_tokens
    config.model.num_write_steps = numbers["k"]
    config.model.num_memory_tokens = numbers["m"]
    config.model.write_lora_rank = 0 if without_adapters else 8
    config.model.memory_projection = "proj"
    config.model.num_control_tokens = 1
    config.model.inner_loss_weight = 0.1
    config.lm.scan_layers = True  # short compilation
    config.frozen = ("^lm/",)
    config.best_metric = "token_accuracy"
    config.num_steps = 2000
    config.batch_size = 32
    config.evaluate_every = 250
    config.num_eval_samples = 320
    config.stop_at_exact_match = 0.95
    config.final_num_write_steps = (0, numbers["k"])
    recipe.apply(config, alpha=2.0, embedding_std=0.3)
    config.optimizer.learning_rate = 3e-3 if config.model.num_write_steps < 5 else 1.5e-3
    config.optimizer.warmup_steps = 50
    return config
