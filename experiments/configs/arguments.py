"""Reads the part of `--config=file.py:gradmem_n8_k2` behind the colon."""

import re
from typing import NamedTuple

from gradmem_jax.checks import require
from gradmem_jax.methods import METHODS


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        method: a name of gradmem_jax/methods.py.
        numbers: by letter, such as {"n": 8, "k": 2}.
    """

    method: str
    numbers: dict[str, int]


def parse_row(arguments: str, letters: str = "nkm") -> Row:
    """Reads `rmt_n8_k2`: a method (GradMem if there is none) and numbers behind letters.

    Args:
        arguments: the text; n is always needed.
        letters: those that may occur: n pairs, k WRITE steps, m memory tokens, t segments.

    Raises:
        ValueError: the text has another form.
    """
    methods = "|".join(METHODS)
    match = re.fullmatch(rf"(?:({methods})_)?((?:[{letters}]\d+(?:_|$))+)", arguments)
    numbers = re.findall(r"([a-z])(\d+)", match[2]) if match else []
    require(
        any(letter == "n" for letter, _ in numbers)
        and len(numbers) == len(dict(numbers))
        and not arguments.endswith("_"),
        f"config argument {arguments!r} must look like 'rmt_n8_k2': a method of {tuple(METHODS)} "
        f"and numbers behind letters of {letters!r}, n among them.",
    )
    return Row((match[1] if match else None) or "gradmem", {a: int(b) for a, b in numbers})
