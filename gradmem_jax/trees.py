"""Names of types of nested arrays."""

from typing import Any

PyTree = Any
Params = dict[str, Any]  # nested: arrays by name, modules around them
