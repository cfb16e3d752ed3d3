"""How far each of several loaders is that take turns, where no length says it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple


class Mark(NamedTuple):
    """How far one loader is: in which round (from 1 on), after how many of its batches, and has it ended once?"""

    round: int = 1
    taken: int = 0
    has_ended: bool = False


class _Member:
    """A loader, and how far it is."""

    def __init__(self, loader: Iterable[Any], mark: Mark) -> None:
        self.loader = loader
        self.round, self.taken, self.has_ended = mark.round - 1, mark.taken, mark.has_ended
        self._is_first = True

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.loader)  # here: it may draw random numbers, in the order of a plain loop
        self.round += 1
        if not self._is_first:
            self.taken = 0
        self._is_first = False
        return self._walk(iterator)

    def _walk(self, iterator: Iterator[Any]) -> Iterator[Any]:
        for batch in iterator:
            self.taken += 1
            yield batch
        self.has_ended = True

    @property
    def mark(self) -> Mark:
        return Mark(self.round, self.taken, self.has_ended)


class Members:
    """The loaders of one iteration.

    Args:
        loaders: The loaders.
        start: How many items are done already.
        marks: How far each loader was then.
    """

    def __init__(self, loaders: Sequence[Iterable[Any]], start: int = 0, marks: Sequence[Mark] = ()) -> None:
        marks = marks or [Mark() for _ in loaders]
        self.members = [_Member(loader, mark) for loader, mark in zip(loaders, marks, strict=True)]
        # Two are kept: whoever looks one item ahead saves the place before it.
        self._seen: deque[tuple[int, list[Mark]]] = deque([(start, list(marks))], maxlen=2)

    def note(self, given: int) -> None:
        """So many items have been given."""
        self._seen.append((given, [member.mark for member in self.members]))

    def state_dict(self) -> list[Any]:
        """The marks after each of the newest items, as plain data."""
        return [[given, [list(mark) for mark in marks]] for given, marks in self._seen]


def resumed(loaders: Sequence[Any], start: int, saved: Sequence[Any]) -> Members | None:
    """Tell `loaders`, whose own states have been restored, to go on behind item `start`; None if it is not known how.

    Args:
        loaders: They have `skip_to`.
        start: How many items are done.
        saved: From `Members.state_dict`.
    """
    seen = {given: [Mark(*mark) for mark in marks] for given, marks in saved}
    if start not in seen or not all(hasattr(loader, "skip_to") for loader in loaders):
        return None
    newest = seen[max(seen)]
    marks: list[Mark] = []
    for loader, then, now in zip(loaders, seen[start], newest, strict=True):
        # A round that the look ahead has begun is the one that the loader's state is of.
        mark = then if now.round == then.round else Mark(now.round, 0, True)
        loader.skip_to(mark.taken)
        marks.append(mark)
    return Members(loaders, start, marks)
