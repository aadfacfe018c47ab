"""What reports need to know of a run, by its kind: its files may be anybody's."""

from collections.abc import Mapping
from typing import Any

from gradmem_jax.checks import require, require_instance

_CONFIG = {
    **dict.fromkeys(("method", "task", "best_metric"), str),
    **dict.fromkeys(("model", "data", "lm"), dict),
    "seed": int,
}
_MODEL = {
    **dict.fromkeys(("num_write_steps", "num_memory_tokens", "second_order_steps"), int | None),
    "gradient_mode": str,
}
_NUMBERS = ("token_accuracy", "read_loss", "write_loss")
_COUNTS = ("memory_floats", "num_parameters", "steps", "seconds")
_LARGEST = 2**40


def check_kinds(config: Any, metrics: Any) -> None:
    """Raises ValueError or KeyError if config.json or metrics.json are none of a run."""
    require_instance("config.json", config, dict)
    require_instance("metrics.json", metrics, dict)
    _check("config", config, _CONFIG)
    _check("model", config["model"], _MODEL)
    for name, value in config["model"].items():
        if isinstance(value, int) and name in _MODEL:
            _check_count(name, value)
    require_instance("data", config["data"], dict)
    for name in _COUNTS:
        if name in metrics:
            _check_count(name, metrics[name])
    devices = metrics.get("devices", [])
    require_instance("devices", devices, list)
    for device in devices:
        require_instance("devices", device, str)
    by_steps = metrics["by_num_write_steps"]
    require_instance("by_num_write_steps", by_steps, dict)
    for steps, row in by_steps.items():
        require(steps.isdecimal() and len(steps) < 10, "by_num_write_steps is not by numbers")
        _check_row(row)
    _check_row(metrics)


def _check(what: str, fields: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for name, kind in kinds.items():
        if name in fields:
            require_instance(f"{what}.{name}", fields[name], kind)


def _check_count(name: str, value: Any) -> None:
    _check_number(name, value)
    require(0 <= value < _LARGEST, f"{name} is not in [0, {_LARGEST})")


def _check_number(name: str, value: Any) -> None:
    """A loss may be NaN or infinite."""
    require_instance(name, value, float)
    require(isinstance(value, float) or abs(value) < _LARGEST, f"{name} has too many digits")


def _check_row(row: Any) -> None:
    require_instance("a result", row, dict)
    rate = row["exact_match"]
    _check_number("exact_match", rate)
    require(0 <= rate <= 1, "exact_match not in [0, 1]")
    for name in _NUMBERS:
        if name in row:
            _check_number(name, row[name])
    losses = row.get("write_loss_of", {})
    require_instance("write_loss_of", losses, dict)
    for loss in losses.values():
        _check_number("write_loss_of", loss)
    rates = row.get("exact_match_by_segment", [])
    require_instance("exact_match_by_segment", rates, list)
    for rate in rates:
        _check_number("exact_match_by_segment", rate)
