"""How several iterables take turns.

Four ways to make one sequence of many. Knows no loader, no tensor, no tree of loaders: `CombinedLoader` does. A limit
(`math.inf` for none) cuts its iterable as `itertools.islice` does; all the rest follows from that:

    mode              one item holds                  ends with          length
    min_size          one batch of each               the shortest       min
    max_size          one batch or None of each       the longest        max
    max_size_cycle    one batch of each; short ones   the longest        max (0 if one is empty)
                      begin again
    sequential        one batch, of one iterable      the last one       sum
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import Any, TypeAlias

from fulmen.trainer.errors import ConfigurationError

Count: TypeAlias = int | float
Item: TypeAlias = tuple[Any, int, int]
"""What to hand out, its index, and the index of its iterable."""

_SPENT = object()


def min_size(iterables: Sequence[Iterable[Any]], limits: Sequence[Count]) -> Iterator[list[Any]]:
    """One batch of each, until one of them ends."""
    return map(list, zip(*_cut_all(iterables, limits), strict=False))


def max_size(iterables: Sequence[Iterable[Any]], limits: Sequence[Count]) -> Iterator[list[Any]]:
    """One batch of each, None of those that have ended, until all have."""
    return map(list, zip_longest(*_cut_all(iterables, limits)))


def max_size_cycle(
    iterables: Sequence[Iterable[Any]], limits: Sequence[Count], ended: Sequence[bool] = ()
) -> Iterator[list[Any]]:
    """One batch of each; what ends begins again, until each has ended once.

    Args:
        iterables: Each may be iterated many times.
        limits: How many batches of each make one round.
        ended: Which of them have come to an end before (on resume).
    """
    iterators = [_cut(iterable, limit) for iterable, limit in zip(iterables, limits, strict=True)]
    has_ended = list(ended) or [False] * len(iterators)
    everywhere = range(len(iterators))
    while iterators:
        batches = [_SPENT] * len(iterators)
        # Those in their first round go first: if the last of them ends here, no other is begun anew for nothing.
        for index in everywhere:
            if not has_ended[index]:
                batches[index] = next(iterators[index], _SPENT)
                has_ended[index] = batches[index] is _SPENT
        if all(has_ended):
            return
        for index in everywhere:
            if batches[index] is _SPENT:
                batches[index] = next(iterators[index], _SPENT)
            if batches[index] is _SPENT:
                iterators[index] = _cut(iterables[index], limits[index])
                batches[index] = next(iterators[index], _SPENT)
            if batches[index] is _SPENT:
                return  # An empty iterable: there never is a batch of each.
        yield batches


def sequential(
    iterables: Sequence[Iterable[Any]], limits: Sequence[Count], first: tuple[int, int] = (0, 0)
) -> Iterator[Item]:
    """All batches of the first, then all of the second, each with its own index and that of its iterable.

    Args:
        iterables: Each is begun only when its turn comes, and not at all if its limit is 0.
        limits: How many batches of each.
        first: Which iterable begins, and how many of its batches it leaves out by itself (on resume).
    """
    first_iterable, done = first
    for index in range(first_iterable, len(iterables)):
        start = done if index == first_iterable else 0
        for batch_idx, batch in enumerate(_cut(iterables[index], limits[index] - start), start):
            yield batch, batch_idx, index


def _indexed(combine: Callable[..., Iterator[list[Any]]]) -> Callable[..., Iterator[Item]]:
    def items(*args: Any, first_idx: int = 0, **kwargs: Any) -> Iterator[Item]:
        for batch_idx, batches in enumerate(combine(*args, **kwargs), first_idx):
            yield batches, batch_idx, 0

    return items


MODES: dict[str, Callable[..., Iterator[Item]]] = {
    "min_size": _indexed(min_size),
    "max_size_cycle": _indexed(max_size_cycle),
    "max_size": _indexed(max_size),
    "sequential": sequential,
}


def check_mode(mode: object) -> str:
    """`mode`, if it is one.

    Raises:
        ConfigurationError: It is not; lists those that are.
    """
    if isinstance(mode, str) and mode in MODES:
        return mode
    raise ConfigurationError(
        f"CombinedLoader(mode={mode!r}) names no way to combine loaders."
        " The mode says who waits for whom when loaders have different lengths."
        f" Pass one of {', '.join(map(repr, MODES))}."
    )


def combined_length(mode: str, lengths: Sequence[Count | None], limits: Sequence[Count] | None = None) -> Count | None:
    """How many items a mode gives.

    Args:
        mode: One of `MODES`.
        lengths: Batches in each iterable; None if nobody knows, `math.inf` if it never ends.
        limits: How many batches of each count at most.

    Returns:
        None if nobody knows; `math.inf` if it never ends.
    """
    cut = [_least(length, limit) for length, limit in zip(lengths, limits or [math.inf] * len(lengths), strict=True)]
    if not cut:
        return 0
    if mode in ("min_size", "max_size_cycle") and 0 in cut:
        return 0
    known = [length for length in cut if length is not None]
    if len(known) < len(cut):
        return None
    if mode == "min_size":
        return min(known)
    return sum(known) if mode == "sequential" else max(known)


def _least(length: Count | None, limit: Count) -> Count | None:
    if limit == 0:
        return 0
    return None if length is None else min(length, limit)


def _cut(iterable: Iterable[Any], limit: Count) -> Iterator[Any]:
    if limit <= 0:
        return iter(())  # Not even begun: beginning may start worker processes.
    if math.isinf(limit):
        return iter(iterable)
    return islice(iterable, int(limit))


def _cut_all(iterables: Sequence[Iterable[Any]], limits: Sequence[Count]) -> list[Iterator[Any]]:
    return [_cut(iterable, limit) for iterable, limit in zip(iterables, limits, strict=True)]
