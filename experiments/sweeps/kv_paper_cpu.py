"""The paper's Table 1 with its model and memory, by the recipe of kv_quick: hours on CPU cores.

One curriculum of K = 2 from 2 to 32 pairs (`start`), a run with a falling rate (`n32_k2_eight`) and
one of K = 5 (`n32_k5`) come first, with eight pairs asked of each context. All other rows start
from there and ask for every pair, which is the better way from the beginning (docs/recipe.md). A
run stops when it has passed the paper's figure. Three seeds up to 16 pairs, one beyond; other
methods go through a curriculum of their own. Pick with --only, as in
--only='^(start|n32_k2_eight|n32_k2)_seed0'. What was run so far is in docs/results.md.
"""

from typing import Any, NamedTuple

from experiments.sweeps.run_list import Run, seeds

CONFIG = "experiments/configs/kv_scaling.py"
# Width and memory of the paper; the rest of its model is the default.
PAPER = {
    "lm.width": 128,
    "num_eval_samples": 2000,
    "final_num_write_steps": (0, 1, 2, 3, 5, 8, 16),
}
ONE_PASS = {"lm.width": 128, "num_eval_samples": 2000}
EIGHT = {"data.queries_per_context": 8}
CHAINED = {"curriculum.num_pairs": (), "evaluate_every": 100}


class Row(NamedTuple):
    """A run that goes on from another.

    Attributes:
        name: of the run.
        num_pairs: N.
        num_write_steps: K.
        after: name of the run it starts from.
        learning_rate: the highest one.
        num_steps: steps at most.
        enough: exact match at which it stops.
        warmup_steps: of the learning rate.
        batch_size: contexts a step.
        schedule: of the learning rate.
    """

    name: str
    num_pairs: int
    num_write_steps: int
    after: str
    learning_rate: float
    num_steps: int
    enough: float
    warmup_steps: int = 50
    batch_size: int = 32
    schedule: str = "cosine"


SHORT_ROWS = tuple(
    Row(f"n{n}_k{k}", n, k, "n32_k2_eight", 1e-3, 300, 0.9995)
    for n in (4, 8, 16)
    for k in (1, 2, 5)
)
LONG_ROWS = (
    Row("n32_k2", 32, 2, "n32_k2_eight", 1.5e-3, 800, 0.993),
    Row("n32_k1", 32, 1, "n32_k5", 1e-3, 1120, 0.95, 20),
    Row("n64_k5", 64, 5, "n32_k5", 1e-3, 380, 0.995, 20, 16),
    Row("n64_k5_more", 64, 5, "n64_k5", 1e-3, 340, 0.995, 20, 16),
    Row("n64_k2_first", 64, 2, "n64_k5", 1.5e-3, 150, 0.95, 20, 16, "constant"),
    Row("n64_k2", 64, 2, "n64_k2_first", 1e-3, 560, 0.95, 20, 16),
    Row("n96_k5", 96, 5, "n64_k5_more", 5e-4, 400, 0.995, 20, 16),
)
OTHERS = ("full_context", "mamba", "armt", "rmt")


def _run(row: Row) -> Run:
    fields: dict[str, Any] = PAPER | CHAINED
    fields |= {
        "model.num_write_steps": row.num_write_steps,
        "optimizer.learning_rate": row.learning_rate,
        "optimizer.schedule": row.schedule,
        "optimizer.warmup_steps": row.warmup_steps,
        "num_steps": row.num_steps,
        "batch_size": row.batch_size,
        "stop_at_exact_match": row.enough,
    }
    return Run(row.name, f"{CONFIG}:n{row.num_pairs}", fields, after=row.after)


def _first_runs() -> list[Run]:
    """From nothing to 32 pairs with K = 2 and K = 5."""
    curriculum = {"optimizer.learning_rate": 1e-3, "num_steps": 1500, "evaluate_every": 500}
    runs = [
        Run("start", f"{CONFIG}:n32", PAPER | curriculum),
        _run(Row("n32_k2_eight", 32, 2, "start", 1.5e-3, 900, 0.995)),
        _run(Row("n32_k5", 32, 5, "n32_k2_eight", 8e-4, 200, 0.9995)),
    ]
    return [run._replace(overrides={**run.overrides, **EIGHT}) for run in runs]


def get_runs() -> list[Run]:
    """Returns the runs, those of seed 0 first."""
    short = [*_first_runs(), *map(_run, SHORT_ROWS)]
    runs = seeds(short, [0])
    runs += seeds([*map(_run, LONG_ROWS)], [0])
    runs += seeds(short, [1, 2])
    for method in OTHERS:
        for n in (4, 8, 16, 32):
            fields = ONE_PASS | {"optimizer.learning_rate": 1e-3, "num_steps": 3000}
            runs.append(Run(f"{method}_n{n}_seed0", f"{CONFIG}:{method}_n{n}", fields))
    return runs
