"""Spans of 2, 4, ... tokens of what stories260K models, by m and K, with adapters and without.

A chain stops at the first span that does not come back with 95 % of its tokens right; K = 5 begins
where K = 2 has learned spans of 2. `spans8_k5_m4_more` goes on from one of them. Needs
GRADMEM_STORIES, the folder of stories260K.bin and tok512.bin, and GRADMEM_SPANS, a text file drawn
from that model by experiments.sample.
"""

import os

from experiments.sweeps.run_list import Run, chain
from gradmem_jax.checks import require

SPANS = (2, 4, 8, 16, 32, 64)


def get_runs() -> list[Run]:
    """Returns the runs, chains of spans."""
    stories, text = os.environ.get("GRADMEM_STORIES", ""), os.environ.get("GRADMEM_SPANS", "")
    require(
        bool(stories and text),
        "set GRADMEM_STORIES to the folder of stories260K.bin and GRADMEM_SPANS to a text file.",
    )
    places = {"pretrained": f"{stories}/stories260K.bin", "data.data_dir": text}
    runs: list[Run] = []
    for ending in ("", "_frozen"):
        for m in (1, 2, 4):
            for k in (1, 2, 5):
                cells = [f"spans{n}_k{k}_m{m}{ending}" for n in SPANS]
                config = "experiments/configs/compression_small.py:"
                row = chain([Run(cell, config + cell, places) for cell in cells], stop_below=0.95)
                after = f"spans2_k2_m{m}{ending}" if k > 2 else ""
                runs += [row[0]._replace(after=after), *row[1:]]
    more = {"num_steps": 2500, "evaluate_every": 500, "final_num_write_steps": (0, 2, 5, 8)}
    cell = "spans8_k5_m4"
    runs.append(
        Run(
            f"{cell}_more",
            f"experiments/configs/compression_small.py:{cell}",
            places | more,
            after=cell,
        )
    )
    return runs
