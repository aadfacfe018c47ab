"""Natural language in the paper: `text_paper.py:squad_gradmem_k5`, with `--config.pretrained=DIR`.

Table 2: `qa1` to `qa5` (bAbI), `squad` (short SQuAD) and `lm` (WikiText, 128 tokens after 128) in
front, then a method: `gradmem_k1`, `gradmem_k2`, `gradmem_k5`, `rmt`, `armt`, `mamba`,
`full_context`; `lm_limited` sees no context. DIR holds GPT-2 (Pythia-160m for its full context,
Mamba-130m for `mamba`), see `load_pretrained`.

Appendix I, Table 9: `spans16_gradmem_k2_m2` presses spans of 16 tokens into 2 memory vectors of a
frozen Llama-3.2 with adapters in WRITE; `_frozen` behind it leaves the adapters out.

Memory sizes and alpha are the paper's; batches, learning rates, warm-up and the projection of the
memory those of the official code's scripts.
"""

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.arguments import Arguments

METHODS = ("gradmem", "rmt", "armt", "mamba", "full_context", "limited")
TASKS = {"qa": "babi", "squad": "squad", "lm": "wikitext", "spans": "text_spans"}
NUM_MEMORY_TOKENS = {"qa": 8, "squad": 32, "lm": 32, "spans": 1}
ARGUMENTS = Arguments(
    "spans16_gradmem_k2_m2",
    cells=("qa#", "squad", "lm", "spans#"),
    methods=METHODS,
    letters="km",
    switch="frozen",
)


def get_config(arguments: str = "squad_gradmem_k1") -> ConfigDict:
    """Returns the configuration of a cell."""
    cell, size, method, numbers, without_adapters = ARGUMENTS.parse(arguments)
    steps, tokens = numbers.get("k", 1), numbers.get("m", NUM_MEMORY_TOKENS[cell])
    name = "full_context" if method == "limited" else method
    config = default.get_config(name, TASKS[cell], pretrained=True)
    config.num_steps = 200_000
    config.lm.dtype = "bfloat16"
    config.model.num_write_steps = 0 if method == "limited" else steps
    default.set_known(config.model, num_memory_tokens=tokens)
    if "memory_projection" in config.model:
        config.model.memory_projection = "proj"
    if method == "gradmem":
        config.model.write_learning_rate = 0.4
    if method == "rmt":
        config.optimizer.learning_rate = 3e-4
    if cell == "qa":
        config.data.qa = size
    if cell == "squad":
        config.data.context = "sentence"
    if cell == "lm":
        config.best_metric = "read_loss"
    if cell == "spans":
        _compress(config, size, adapters=not without_adapters)
    return config


def _compress(config: ConfigDict, num_tokens: int, adapters: bool) -> None:
    config.data.num_tokens = num_tokens
    config.best_metric = "token_accuracy"
    config.num_steps = 50_000
    config.optimizer.warmup_steps = 1000
    config.frozen = ("^lm/",)
    if "write_lora_rank" in config.model:
        config.model.write_learning_rate = 0.08
        config.model.write_lora_rank = 8 if adapters else 0
