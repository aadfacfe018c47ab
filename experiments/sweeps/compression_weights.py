"""Spans of 4 tokens in 2 vectors of stories260K: the weight of the WRITE loss, and other changes.

Needs GRADMEM_STORIES and GRADMEM_SPANS as compression_small.py does.
"""

import os
from typing import Any

from experiments.sweeps.run_list import Run
from gradmem_jax.checks import require

CHANGES: dict[str, dict[str, Any]] = {
    "weight_1": {"model.inner_loss_weight": 1.0},
    "weight_0.3": {"model.inner_loss_weight": 0.3},
    "weight_0.1": {},
    "weight_0.03": {"model.inner_loss_weight": 0.03},
    "rank_32": {"model.write_lora_rank": 32},
    "own_head": {"model.write_head": False},
    "no_projection": {"model.memory_projection": "none"},
    "muon": {
        "model.inner_loss_weight": 1.0,
        "optimizer.name": "muon",
        "optimizer.learning_rate": 2e-3,
    },
}


def get_runs() -> list[Run]:
    """Returns the runs, 600 steps each."""
    stories, text = os.environ.get("GRADMEM_STORIES", ""), os.environ.get("GRADMEM_SPANS", "")
    require(
        bool(stories and text),
        "set GRADMEM_STORIES to the folder of stories260K.bin and GRADMEM_SPANS to a text file.",
    )
    common: dict[str, Any] = {"num_steps": 600, "evaluate_every": 600}
    common |= {"pretrained": f"{stories}/stories260K.bin", "data.data_dir": text}
    config = "experiments/configs/compression_small.py:spans4_k2_m2"
    return [Run(name, config, common | fields) for name, fields in CHANGES.items()]
