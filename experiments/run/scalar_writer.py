"""What takes the scalars of a run, whoever shows them."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class ScalarWriter(Protocol):
    """Takes scalars of a run as it goes on."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of a step by name, such as "train/loss"; steps never go back."""

    def close(self) -> None:
        """Writes what is left; nothing comes after it."""


class RunToWrite(NamedTuple):
    """What a writer is opened with.

    Attributes:
        workdir: folder of the run.
        fields: its configuration, as config.json has it.
        first_step: steps that were done before.
        evaluation_due: whether the last of them is still to be evaluated.
    """

    workdir: pathlib.Path
    fields: Mapping[str, Any]
    first_step: int
    evaluation_due: bool = False
