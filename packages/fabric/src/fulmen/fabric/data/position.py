"""How far an epoch has been read, and how its units are dealt out to any number of processes.

A unit is what is dealt: one sample, or one batch of the user's own batch sampler. All processes know the same order of
units, and process r of N takes units r, r + N, r + 2N, … of it. Knows no loader and no tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any, TypeVar

from fulmen.fabric.errors import ConfigurationError

T = TypeVar("T")


def check_rank(rank: int, world_size: int) -> None:
    """Refuse a place that no process has.

    Raises:
        ConfigurationError: If there is no process `rank` among `world_size`.
    """
    if not 0 <= rank < world_size:
        raise ConfigurationError(
            f"rank={rank} with world_size={world_size} names no process. Processes are counted from 0 to"
            f" world_size - 1. Pass a rank from 0 to {max(world_size, 1) - 1}, and a world_size of at least 1."
        )


def share_length(num_units: int, rank: int, world_size: int, *, drop_last: bool, repeats: bool = True) -> int:
    """How many of `num_units` process `rank` gets; see `deal`."""
    if drop_last:
        return num_units // world_size
    return -(-num_units // world_size) if repeats else len(range(rank, num_units, world_size))


def deal(
    units: Iterable[T], rank: int, world_size: int, *, drop_last: bool, repeats: bool = True, skip: int = 0
) -> Iterator[T]:
    """The units of process `rank`, in order, reading no further ahead than one round.

    If the last round does not reach everybody, it is filled up with the first units, or left out (`drop_last`), so
    that all processes make the same number of steps. The result is that of torch's `DistributedSampler`. Or it stays as
    it is (`repeats=False`): every unit is dealt once, and some processes get one more than others. The first `skip`
    units of the process are left out; where all units are known, that takes no time.

    >>> [list(deal("abcde", rank, 2, drop_last=False)) for rank in (0, 1)]
    [['a', 'c', 'e'], ['b', 'd', 'a']]
    >>> [list(deal("abcde", rank, 2, drop_last=False, repeats=False)) for rank in (0, 1)]
    [['a', 'c', 'e'], ['b', 'd']]
    """
    if isinstance(units, list | range):
        return _deal_known(units, rank, world_size, drop_last=drop_last, repeats=repeats, skip=skip)
    dealt = _deal_round_by_round(units, rank, world_size, drop_last=drop_last, repeats=repeats)
    return islice(dealt, skip, None) if skip else dealt


def _deal_known(
    units: list[T] | range, rank: int, world_size: int, *, drop_last: bool, repeats: bool, skip: int
) -> Iterator[Any]:
    # Nothing is left to do per unit: this is read in every step.
    num_whole = len(units) - len(units) % world_size
    share = iter(units[rank + skip * world_size : num_whole : world_size])
    if skip * world_size > num_whole:
        return share  # it was in the last round
    last = _last_of(units[num_whole:], units[:world_size], rank, world_size, drop_last=drop_last, repeats=repeats)
    return chain(share, last)


def _deal_round_by_round(
    units: Iterable[T], rank: int, world_size: int, *, drop_last: bool, repeats: bool
) -> Iterator[T]:
    rest = iter(units)
    first: list[T] = []
    while len(dealt := list(islice(rest, world_size))) == world_size:
        first = first or dealt
        yield dealt[rank]
    yield from _last_of(dealt, first or dealt, rank, world_size, drop_last=drop_last, repeats=repeats)


def _last_of(
    left: Iterable[T], first: Iterable[T], rank: int, world_size: int, *, drop_last: bool, repeats: bool
) -> list[T]:
    """What process `rank` is given of the last round, which does not reach everybody."""
    dealt = list(left)
    if dealt and not drop_last and repeats:
        dealt += islice(cycle(first), world_size - len(dealt))
    return [] if drop_last else dealt[rank : rank + 1]


@dataclass(frozen=True, slots=True)
class Position:
    """How far one epoch has been read.

    Args:
        start: Units of the epoch that were done before this run took over from another number of processes.
        batch: Batches that each process has been given since.
        world_size: The number of processes.
        batch_size: Units in one batch of one process.
        before: Batches that each process had been given before `start`: loops count on.
    """

    start: int = 0
    batch: int = 0
    world_size: int = 1
    batch_size: int = 1
    before: int = 0

    @property
    def number(self) -> int:
        """Batches that each process has been given in this epoch."""
        return self.before + self.batch

    @property
    def units_done(self) -> int:
        """Units that all processes together have been given."""
        return self.start + self.batch * self.world_size * self.batch_size

    def resumed_on(self, world_size: int, batch_size: int) -> Position:
        """The same place, for another run: nothing done is done again, nothing left is left out.

        While the dealing is the same, the batches keep their numbers; else a new deal begins at the first unit left.
        """
        if (world_size, batch_size) == (self.world_size, self.batch_size):
            return self
        return Position(self.units_done, 0, world_size, batch_size, self.number)

    def length(
        self, num_units: int, rank: int, *, drop_last: bool = False, repeats: bool = True, whole_batches: bool = False
    ) -> int:
        """How many batches process `rank` is given in this epoch, those before `start` included.

        Args:
            num_units: Units of the whole epoch.
            rank: The process.
            drop_last, repeats: As for `deal`.
            whole_batches: Is a last batch that is not full left out?
        """
        left = max(num_units - self.start, 0)
        share = share_length(left, rank, self.world_size, drop_last=drop_last, repeats=repeats)
        return self.before + (share // self.batch_size if whole_batches else -(-share // self.batch_size))
