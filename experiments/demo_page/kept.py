"""What was computed before, as far as there is room."""

import collections
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Kept(Generic[_Value]):
    """Values by key; of more than `most` the one that was not asked for longest is given up."""

    def __init__(self, most: int):
        """Keeps nothing yet."""
        self._most = most
        self._values: collections.OrderedDict[Hashable, _Value] = collections.OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        """Whether there is a value of a key."""
        return key in self._values

    def drop(self, is_old: Callable[[_Value], bool]) -> None:
        """Gives up the values of which this is true."""
        for key in [key for key, value in self._values.items() if is_old(value)]:
            del self._values[key]

    def get(self, key: Hashable) -> _Value | None:
        """The value of a key, None if it is not kept."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: Hashable, value: _Value) -> _Value:
        """Keeps a value and returns it."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)
        return value
