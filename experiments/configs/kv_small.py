"""Small counterpart of the paper's Table 1, for CPU: `kv_small.py:gradmem_n8_k2`.

Keys and values of one symbol out of 16, 2 memory vectors of width 64, 2 layers. Every method of
gradmem_jax/methods.py has rows, `mamba_n4` for example; `_k` is for methods with several steps,
`_m` changes the memory vectors, `_t` splits the context into segments that are written one by one.
Runs come in chains (experiments/sweeps/kv_small.py): N = 4 from scratch, then N = 8 from its
parameters; the other way round for the full context, which leaves the plateau of guessing among
the values it has seen sooner with 8 pairs.
"""

from ml_collections import ConfigDict

from experiments.configs import default, kv_quick
from experiments.configs.arguments import Arguments
from gradmem_jax.checks import require
from gradmem_jax.methods import METHODS

ARGUMENTS = Arguments(
    "gradmem_n8_k2", methods=tuple(METHODS), method="gradmem", letters="nkmt", needed="n"
)
FIRST_PAIRS = {"full_context": 8}
NUM_STEPS = {4: {4: 1000, 8: 1000}, 8: {8: 5000, 4: 500}}  # by first N, then by N


def get_config(arguments: str = "gradmem_n4_k2") -> ConfigDict:
    """Returns the configuration of a row."""
    row = ARGUMENTS.parse(arguments)
    config = kv_quick.get_config(row.method)
    num_pairs = row.numbers["n"]
    steps = NUM_STEPS[FIRST_PAIRS.get(row.method, 4)]
    require(num_pairs in steps, f"N={num_pairs} is not in this table; it is one of {(*steps,)}.")
    config.num_steps = steps[num_pairs]
    config.evaluate_every = 250
    config.num_eval_samples = 1000
    config.stop_at_exact_match = 0.985
    config.optimizer.warmup_steps = 100
    config.lm.num_layers = 2
    default.set_known(config.lm, state_size=8, memory_width=32, chunk_size=16)
    default.set_known(config.model, num_memory_tokens=row.numbers.get("m", 2))
    config.model.num_write_steps = row.numbers.get("k", 1)
    config.data.key_length = config.data.value_length = 1
    config.data.alphabet_size = 16
    config.data.num_segments = row.numbers.get("t", 1)
    config.data.num_pairs = config.data.queries_per_context = num_pairs
    return config
