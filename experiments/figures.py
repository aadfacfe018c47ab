"""Figures for people who would rather look than read."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402


def exact_match_by_steps(
    path: pathlib.Path,
    results: Mapping[int, Mapping[int, Mapping[str, Any]]],
    trained: Mapping[str, int],
) -> None:
    """Draws exact match, and WRITE loss by kind of token, against the number of WRITE steps.

    Args:
        path: PNG to write.
        results: by number of pairs, then by number of WRITE steps, as `evaluate_params` returns.
        trained: num_pairs and num_write_steps of the training.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for n, rows in results.items():
        steps = list(rows)
        rates = [100 * rows[k]["exact_match"] for k in steps]
        bounds = [[100 * b for b in rows[k]["confidence_interval"]] for k in steps]
        errors = [
            [max(rate - low, 0) for rate, (low, _) in zip(rates, bounds, strict=True)],
            [max(high - rate, 0) for rate, (_, high) in zip(rates, bounds, strict=True)],
        ]
        left.errorbar(steps, rates, errors, marker="o", capsize=3, label=f"N = {n} pairs")
    left.axvline(trained["num_write_steps"], color="grey", linestyle=":", label="K in training")
    left.set(xlabel="WRITE steps K", ylabel="exact match, %", ylim=(-2, 102))
    left.set_title("Answers from memory alone")
    left.legend()
    shown = trained["num_pairs"] if trained["num_pairs"] in results else next(iter(results))
    rows = results[shown]
    for kind in rows[next(iter(rows))]["write_loss_of"]:
        losses = [rows[k]["write_loss_of"][kind] for k in rows]
        right.plot(list(rows), losses, marker="o", label=kind)
    right.set(xlabel="WRITE steps K", ylabel="WRITE loss, nats a token", ylim=(0, None))
    right.set_title(f"What memory holds of the context, N = {shown}")
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
