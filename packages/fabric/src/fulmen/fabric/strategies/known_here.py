"""What a strategy remembers of modules in its own process: weakly, and where it is unpickled it remembers none.

A strategy travels by value to the processes that are spawned; the modules that were set up here do not exist there.
"""

from __future__ import annotations

from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from torch.nn import Module

V = TypeVar("V")


class ModulesKnownHere(WeakSet[Module]):
    """A weak set of modules; a copy of it is empty."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class NotesOnModulesHere(WeakKeyDictionary[Module, V]):
    """What is known of each module; a copy of it is empty."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> NotesOnModulesHere[V]:
        return type(self)()
