"""kv_quick with other seeds, with one ingredient changed, and other methods in its 800 steps."""

from typing import Any

from experiments.sweeps.run_list import Run, seeds

CONFIG = "experiments/configs/kv_quick.py:"
CURRICULUM = {"curriculum.num_pairs": (2, 4)}
CHANGES: dict[str, dict[str, Any]] = {
    "one_query": {"data.queries_per_context": 1},
    "small_alpha": {"model.write_learning_rate": 0.4},  # ended by hand at step 400
    "small_alpha_curriculum": {"model.write_learning_rate": 0.4} | CURRICULUM,
    "paper_init": {"lm.init": "normal", "model.memory_init_std": 0.02},
    "k1": {"model.num_write_steps": 1},
    "first_order": {"model.gradient_mode": "first"},
    "slow": {"optimizer.learning_rate": 1e-4},
    "k0": {"model.num_write_steps": 0},
    "one_head": {"model.write_head": False},
    "b2_999": {"optimizer.b2": 0.999},
    "curriculum": CURRICULUM,
    "fixed_alpha": {"model.learned_write_learning_rate": "none"} | CURRICULUM,
    "fast": {"optimizer.learning_rate": 3e-3, "num_steps": 700} | CURRICULUM,
    "m16": {"model.num_memory_tokens": 16, "num_steps": 700} | CURRICULUM,
    "muon": {"optimizer.name": "muon"},
}


def get_runs() -> list[Run]:
    """Returns the runs."""
    unchanged = seeds([Run("unchanged", CONFIG)], range(3))
    changed = [Run(name, CONFIG, fields) for name, fields in CHANGES.items()]
    methods = [Run(method, CONFIG + method) for method in ("rmt", "full_context")]
    return unchanged + changed + methods
