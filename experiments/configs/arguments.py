"""Reads the part of `--config=file.py:rmt_n8_k2` behind the colon.

An argument is made of words with `_` between them, in this order: a cell of a table such as `qa2`,
a method such as `rmt`, numbers behind letters such as `k2`, and a switch such as `frozen`. A
configuration declares which of them it takes:

  ARGUMENTS = Arguments("rmt_n8_k2", methods=tuple(METHODS), method="gradmem", letters="nk")
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from gradmem_jax.checks import require


class Parsed(NamedTuple):
    """What an argument says.

    Attributes:
        cell: the cell, without its number; "" if a configuration takes none.
        size: the cell's number, 2 of `qa2`; 0 if it has none.
        method: the method.
        numbers: by letter, {"n": 8, "k": 2} of `n8_k2`.
        switch: whether the switch is there.
    """

    cell: str
    size: int
    method: str
    numbers: dict[str, int]
    switch: bool


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The arguments that a configuration takes.

    Attributes:
        example: one of them, shown when another is refused.
        cells: cells, of which one must be there; "qa#" is `qa` with a number behind it.
        methods: methods that may be there.
        method: the one meant if none is there; "" if one must be.
        letters: of numbers that may be there, in any order.
        needed: those of them that must be.
        switch: a word that may stand at the end.
    """

    example: str
    cells: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    method: str = ""
    letters: str = ""
    needed: str = ""
    switch: str = ""

    def parse(self, text: str) -> Parsed:
        """Reads an argument.

        Raises:
            ValueError: it is none of this configuration.
        """
        match = re.fullmatch(self._pattern(), f"{text}_")
        words = match.groupdict() if match else {}
        found = re.findall(r"([a-z])(\d+)_", words.get("numbers", ""))
        numbers = {letter: int(number) for letter, number in found}
        require(
            match is not None and len(found) == len(numbers) and numbers.keys() >= {*self.needed},
            f"config argument {text!r} must look like {self.example!r}: {self._describe()}.",
        )
        name, size = re.findall(r"(\D*)(\d*)", words.get("cell") or "")[0]
        method = words.get("method") or self.method
        return Parsed(name, int(size or 0), method, numbers, bool(words.get("switch")))

    def _pattern(self) -> str:
        """A pattern of an argument with `_` behind its last word too."""
        cell = _word("cell", [cell.replace("#", r"\d+") for cell in self.cells])
        method = _word("method", self.methods, optional=bool(self.method))
        numbers = rf"(?P<numbers>(?:[{self.letters}]\d+_)*)" if self.letters else ""
        switch = _word("switch", [self.switch] if self.switch else [], optional=True)
        return cell + method + numbers + switch

    def _describe(self) -> str:
        """Says what an argument is made of."""
        parts = [
            self.cells and f"one of {self.cells}, # being a number",
            self.methods and f"a method of {self.methods}",
            self.letters and f"numbers behind letters of {self.letters!r}",
            self.needed and f"{' and '.join(self.needed)} among them",
            self.switch and f"perhaps {self.switch!r}",
        ]
        return ", ".join(part for part in parts if part)


def _word(name: str, words: Sequence[str], optional: bool = False) -> str:
    """A pattern of one of some words and the `_` behind it; "" if there are none."""
    if not words:
        return ""
    return rf"(?:(?P<{name}>{'|'.join(words)})_)" + "?" * optional
