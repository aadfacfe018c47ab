"""The official PyTorch code, measured in processes of its own."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

from experiments.speed import child_processes
from experiments.speed.setting import Setting
from gradmem_jax.checks import require

_RUNNER = pathlib.Path(__file__).with_name("reference_runner.py")


class Reference(NamedTuple):
    """The official code, and what runs it.

    Attributes:
        folder: a checkout of it.
        python: a Python that has torch and transformers.
        device: "cpu" or "cuda".
    """

    folder: str
    python: str
    device: str

    def measure(
        self, kind: str, setting: Setting | None = None, seconds: float | None = None
    ) -> child_processes.Measured:
        """Measures it, or only sees that it can be started if kind is "check".

        Args:
            kind: "step", "inference" or "check".
            setting: of what; "check" needs none.
            seconds: that it may take; None does not limit it.
        """
        fields = [] if setting is None else [json.dumps(dataclasses.asdict(setting))]
        command = [self.python, str(_RUNNER), self.folder, kind, *fields]
        return child_processes.run_json([*command, f"--device={self.device}"], seconds)

    def check(self) -> None:
        """Raises ValueError unless it can be started."""
        require(
            (pathlib.Path(self.folder) / "grad_memgpt.py").is_file(),
            f"--reference={self.folder} has no grad_memgpt.py; give a checkout of "
            "https://github.com/yurakuratov/gradmem.",
        )
        require(
            pathlib.Path(self.python).is_file(),
            f"--reference_python={self.python} is no file; give the Python of an "
            "environment with torch and transformers.",
        )
        error = self.measure("check").get("error")
        require(
            error is None,
            f"--reference={self.folder} does not start with --reference_python="
            f"{self.python}: {error}",
        )
