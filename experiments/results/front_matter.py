"""The YAML in front of a model card, and what that of another card says."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown
from gradmem_jax.storage import reading

LARGEST_CARD = reading.MEBIBYTE
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_OF_FRONT_MATTER = re.compile(r"^license:[ \t]*[\"']?([^\s\"'#]+)[\"']?[ \t]*(#.*)?$", re.M)


def check_license(name: str | None) -> None:
    """Refuses what is no identifier of a licence, as hubs write them."""
    require(
        name is None or _LICENSE.fullmatch(name) is not None,
        f"--license={shown(name)} is no identifier such as apache-2.0, cc-by-4.0, mit or other.",
    )


def license_of(card: pathlib.Path | None) -> str | None:
    """The licence that the front matter of a model card says, if there is one."""
    if card is None or not card.is_file():
        return None
    text = reading.read_text(card, "model card", LARGEST_CARD)
    opening, _, rest = text.partition("---")
    found = _OF_FRONT_MATTER.search(rest.partition("\n---")[0]) if not opening.strip() else None
    return found[1] if found and _LICENSE.fullmatch(found[1]) else None


def front_matter(fields: Mapping[str, Any]) -> str:
    """Returns the lines in front of a card, those that mark them among them."""
    return f"---\n{yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)}---"
