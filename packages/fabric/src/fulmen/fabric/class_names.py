"""What users call the class of an object, where torch has put one of its own around it."""

from __future__ import annotations

import sys


def class_name(obj: object) -> str:
    """The name of the class that somebody wrote.

    torch makes classes while a program runs, and changes objects into them: `fully_shard` turns a `Net` into an
    `FSDPNet`, `parametrize` a `Linear` into a `ParametrizedLinear`. Nobody has these in a file to look at.
    """
    kind = type(obj)
    while _is_made_by_torch(kind):
        kind = kind.__bases__[-1]
    return kind.__name__


def _is_made_by_torch(kind: type) -> bool:
    if not kind.__module__.startswith("torch.") or kind.__qualname__ != kind.__name__:
        return False
    # What was written in a module can be found there.
    return getattr(sys.modules.get(kind.__module__), kind.__name__, None) is not kind
