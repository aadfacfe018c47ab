"""Evaluates a trained run with the context removed, over numbers of pairs and of WRITE steps.

Writes evaluation.json and evaluation.png into the run's folder. Example:

  python -m experiments.evaluate --workdir=runs/kv_quick --num_write_steps=0,1,2,4,8
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags
from ml_collections import ConfigDict

from experiments import figures, reporting
from experiments.build import build_data, build_model
from experiments.evaluation import evaluate_params, table
from experiments.reporting import log
from gradmem_jax import checkpoint
from gradmem_jax.config import require

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run to evaluate.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a step.")
_NUM_WRITE_STEPS = flags.DEFINE_list(
    "num_write_steps", ["0", "1", "2", "3", "4", "5", "8"], "Numbers of WRITE steps K."
)
_NUM_PAIRS = flags.DEFINE_list("num_pairs", None, "Numbers of pairs N; default: as trained.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 2000, "Validation contexts.", lower_bound=1)
_QUERIES = flags.DEFINE_integer("queries_per_context", 1, "Queries of each context.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Path of the results without suffix; in --workdir.")


def _integers(name: str, values: Sequence[str]) -> list[int]:
    require(
        all(value.strip().isdigit() for value in values),
        f"--{name}={','.join(values)} must be whole numbers separated by commas.",
    )
    return sorted({int(value) for value in values})


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    reporting.set_up_logging()
    workdir = pathlib.Path(_WORKDIR.value)
    config = ConfigDict(reporting.read_json(workdir / "config.json"))
    step, params = checkpoint.restore_params(workdir / "checkpoints", _CHECKPOINT.value)
    model = build_model(config)
    steps = _integers("num_write_steps", _NUM_WRITE_STEPS.value)
    pairs = _integers("num_pairs", _NUM_PAIRS.value or [str(config.data.num_pairs)])
    results = {}
    for n in pairs:
        data = build_data(config, num_pairs=n, queries_per_context=_QUERIES.value)
        results[n] = evaluate_params(model, params, data, steps, num_samples=_NUM_SAMPLES.value)
        log.info("N=%d, checkpoint of step %d\n%s", n, step, table(results[n]))
    out = pathlib.Path(_OUT.value) if _OUT.value else workdir / "evaluation"
    trained = {
        "num_pairs": config.data.num_pairs,
        "num_write_steps": config.model.num_write_steps,
    }
    report = {
        "workdir": workdir,
        "step": step,
        "num_samples": _NUM_SAMPLES.value,
        "trained": trained,
        "by_num_pairs": results,
    }
    reporting.write_json(out.with_suffix(".json"), report)
    figures.exact_match_by_steps(out.with_suffix(".png"), results, trained)
    log.info("wrote %s and .png", out.with_suffix(".json"))


if __name__ == "__main__":
    app.run(main)
