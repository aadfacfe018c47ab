"""How far a device is from the official numbers: `python -m tests.golden_errors` prints JSON.

It needs no test runner, so it runs where only JAX and this library are.
"""

import json
import sys

import jax
import numpy as np

from gradmem_jax import GradMem
from gradmem_jax.trees import PyTree
from tests.golden_cases import case_names, load_case


def distance(got: PyTree, want: PyTree) -> float:
    """Norm of the difference, relative to that of what is wanted."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    difference, norm = (
        np.sqrt(sum(np.square(x).sum() for x in arrays))
        for arrays in ([x - y for x, y in pairs], [y for _, y in pairs])
    )
    return float(difference / norm)


def errors(name: str, precision: str = "highest") -> dict[str, float]:
    """Errors of memory, loss and outer gradient of a golden case of GradMem, relative."""
    from tests.memory.parity_test import outer_loss

    case = load_case(name, lm={"matmul_precision": precision, "scan_layers": True})
    batch = {key: case.io[key] for key in ("context_ids", "query_ids", "labels")}
    run = jax.jit(jax.value_and_grad(outer_loss, has_aux=True), static_argnums=1)
    (loss, parts), gradients = jax.device_get(run(case.params, GradMem(case.config), batch))
    memory = parts["memory"]
    return {
        "memory": distance(getattr(memory, "tokens", memory), case.io["memory"]),
        "loss": abs(float(loss) / float(case.io["loss"][0]) - 1),
        "gradient": distance({key: gradients[key] for key in case.gradients}, case.gradients),
    }


def main() -> None:
    """Prints the errors of every case, the worst of each kind, and the device."""
    cases = {name: errors(name) for name in case_names("gradmem_*")}
    kinds = next(iter(cases.values()))
    worst = {kind: max(found[kind] for found in cases.values()) for kind in kinds}
    device = jax.devices()[0].device_kind
    sys.stdout.write(json.dumps({"device": device, "worst": worst, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
