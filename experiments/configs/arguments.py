"""Reads the part of `--config=file.py:n8_k2` behind the colon."""

import re

from gradmem_jax.config import require


def parse(arguments: str, names: str) -> tuple[int, ...]:
    """Returns the numbers behind one-letter names.

    Args:
        arguments: such as "n8_k2".
        names: the letters in their order, such as "nk".

    Raises:
        ValueError: the text has another form.
    """
    match = re.fullmatch("_".join(rf"{name}(\d+)" for name in names), arguments)
    example = "_".join(f"{name}{number}" for name, number in zip(names, (8, 2), strict=False))
    require(match is not None, f"config argument {arguments!r} must look like {example!r}.")
    assert match is not None
    return tuple(int(number) for number in match.groups())
