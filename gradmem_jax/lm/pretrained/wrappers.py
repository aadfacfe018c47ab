"""Names that training programs put in front of all tensors of a model."""

import re
from collections.abc import Mapping
from typing import TypeVar

Tensor = TypeVar("Tensor")
# torch.compile, DataParallel and its like, DeepSpeed under Lightning, adapters of PEFT.
_WRAPPERS = re.compile(r"(_orig_mod\.|module\.|_forward_module\.|base_model\.model\.)+")


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors by their own names, if all have the same such name in front."""
    found = {match[0] if (match := _WRAPPERS.match(name)) else "" for name in tensors}
    if len(found) != 1:
        return dict(tensors)
    (prefix,) = found
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
