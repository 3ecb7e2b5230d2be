"""What classes and modules of code say, worked out anew only where something in them is another object than before."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class Remembered(Generic[T]):
    """A function of what is in namespaces, which are hundreds of functions that hardly ever change.

    Args:
        make: works it out, for a class or a module.
        namespaces: what it looks at.
    """

    def __init__(self, make: Callable[[Any], T], namespaces: Callable[[Any], list[Any]]) -> None:
        self._make, self._namespaces = make, namespaces
        self._known: WeakKeyDictionary[Any, tuple[list[Any], T]] = WeakKeyDictionary()

    def __call__(self, holder: Any) -> T:
        """What the function makes of a class or module as it is now."""
        held: list[Any] = []
        for space in self._namespaces(holder):
            held += space
            held += space.values()
        known = self._known.get(holder)
        if known is None or len(held) != len(known[0]) or not all(map(operator.is_, held, known[0])):
            known = self._known[holder] = held, self._make(holder)
        return known[1]
