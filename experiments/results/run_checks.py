"""What tables and figures take from config.json and metrics.json of a run, checked by type."""

import math
from collections.abc import Mapping
from typing import Any

from experiments.run.plan import BEST_METRICS, LOWER_IS_BETTER
from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown

_NUMBERS = ("memory_floats", "num_parameters", "steps", "seconds", *BEST_METRICS)
_LARGEST = 1e300
_MOST_ROWS = 1000  # numbers of WRITE steps at evaluation


def check_config(config: Any) -> None:
    """Raises ValueError unless a configuration has what a report says of it."""
    _require_dict("config.json", config)
    for name, value in (("lm", {}), ("model", None), ("data", None)):
        _require_dict(name, config.get(name, value))
    for name in ("method", "task", "best_metric"):
        require(
            isinstance(config.get(name, ""), str), f"{name}={shown(config.get(name))} is no text"
        )
    model = config["model"]
    for name in ("num_write_steps", "num_memory_tokens", "second_order_steps"):
        value = model.get(name)
        require(value is None or type(value) is int, f"model.{name}={shown(value)} is no number")
    mode = model.get("gradient_mode", "")
    require(isinstance(mode, str), f"model.gradient_mode={shown(mode)} is no text")


def check_metrics(metrics: Any, judged_by: str) -> None:
    """Raises ValueError unless metrics have what is drawn and tabulated.

    Args:
        metrics: of metrics.json.
        judged_by: the metric that all of its rows must have.
    """
    _require_dict("metrics.json", metrics)
    rows = metrics["by_num_write_steps"]
    _require_dict("by_num_write_steps", rows)
    require(
        0 < len(rows) <= _MOST_ROWS,
        f"by_num_write_steps has {len(rows)} rows; it must have from 1 to {_MOST_ROWS}",
    )
    for k in rows:
        require(k.isdecimal() and len(k) < 10, f"{shown(k)} is no number of WRITE steps")
    for row in (metrics, *rows.values()):
        _require_dict("an evaluation", row)
        require(0 <= _number("exact_match", row["exact_match"]) <= 1, "exact_match not in [0, 1]")
        _number(judged_by, row[judged_by], finite=judged_by not in LOWER_IS_BETTER)
        losses = row.get("write_loss_of", {})
        _require_dict("write_loss_of", losses)
        for kind, loss in losses.items():
            _number(kind, loss, finite=False)
        rates = row.get("exact_match_by_segment", [])
        require(isinstance(rates, list), "exact_match_by_segment is no list")
        for rate in rates:
            _number("exact_match_by_segment", rate)
    for name in _NUMBERS:
        _number(name, metrics.get(name, 0), finite=name not in LOWER_IS_BETTER)
    devices = metrics.get("devices", [])
    require(
        isinstance(devices, list) and all(isinstance(name, str) for name in devices),
        f"devices={shown(devices)} are no names",
    )


def _require_dict(name: str, value: Any) -> None:
    require(isinstance(value, Mapping), f"{name} is a {type(value).__name__}, no group of fields")


def _number(name: str, value: Any, *, finite: bool = True) -> float:
    """Returns a number that can be drawn; a loss need not be finite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_drawn = is_number and abs(value) < _LARGEST
    require(
        is_drawn or (is_number and not finite and not math.isfinite(value)),
        f"{shown(name)}={shown(value)} is no number that can be drawn",
    )
    return value
