"""Split any sampler over processes; go on from a position without loading what lies before it.

`ShardedSampler` decides which samples are this process's; `PositionedBatches` hands out batches of indices, knows how
many, and can begin behind the first. Neither knows a loader.
"""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, compress, islice
from operator import length_hint
from typing import Any

import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, Sampler, SequentialSampler

from fulmen.fabric.data.generators import GlobalGenerators
from fulmen.fabric.data.length import sized_len
from fulmen.fabric.data.position import check_rank, deal, share_length
from fulmen.fabric.data.worker_seeds import SeededIndices, seed_generators
from fulmen.fabric.seeding import derive_seed, isolate_rng, restore_rng_state


class ShardedSampler(DistributedSampler[Any]):
    """This process's share of any sampler, or of any batch sampler.

    A plain shuffle is the one of torch's `DistributedSampler` with the same seed, so that a hand-written DDP loop sees
    the same samples. Other samplers are asked for their order under random numbers that depend on seed and epoch only:
    all processes agree on it, however many numbers each has drawn before.

    Args:
        sampler: What gives the order of all processes together; its units may be indices or batches of indices.
        rank, world_size: Which process this is, of how many.
        shuffle: True shuffles and False orders what is a plain sampler of torch; None leaves the sampler as it is.
        seed: The seed of the run, the same on all processes.
        drop_last: Leave out the units of the last, incomplete round; else some of the first are given twice.
        repeats: False gives none twice: some processes get one unit more than others.
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        *,
        rank: int,
        world_size: int,
        shuffle: bool | None = None,
        seed: int = 0,
        drop_last: bool = False,
        repeats: bool = True,
    ) -> None:
        check_rank(rank, world_size)
        plain = is_plain_shuffle(sampler) or type(sampler) is SequentialSampler
        shuffle = is_plain_shuffle(sampler) if shuffle is None else shuffle
        stand_in: Any = range(sized_len(sampler) or 0)
        super().__init__(stand_in, world_size, rank, shuffle, seed, drop_last)
        self.sampler = sampler
        self.start = 0  # units of the epoch that are done already
        self.skip = 0  # units of this process's share that are left out then
        self.order_rng: dict[str, Any] | None = None  # the random state of a lone process whose order goes on
        self.drawn: list[Any] | None = None  # the order of all processes, where it was drawn before anybody asked
        self._orders_itself = not plain
        self.repeats = repeats

    def __iter__(self) -> Iterator[Any]:
        units = self._order()
        if self.start:
            units = units[self.start :] if isinstance(units, list | range) else islice(units, self.start, None)
        how: dict[str, Any] = {"drop_last": self.drop_last, "repeats": self.repeats, "skip": self.skip}
        return deal(units, self.rank, self.num_replicas, **how)

    def behind(self, count: int) -> ShardedSampler | None:
        """The same without the first `count` units, which nobody is asked for; None if the order is not known."""
        if sized_len(self.sampler) is None:
            return None
        rest = copy.copy(self)
        rest.skip += count
        return rest

    def __len__(self) -> int:
        num_units = len(self.sampler)  # type: ignore[arg-type]
        return share_length(num_units, self.rank, self.num_replicas, drop_last=self.drop_last, repeats=self.repeats)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration: another shuffle for each."""
        super().set_epoch(epoch)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def draw(self) -> None:
        """Draw the order of the next iteration now, if it has a length: generators may stand elsewhere later."""
        self.drawn = None
        if sized_len(self.sampler) is not None:
            self.drawn = list(self._order())

    def _order(self) -> Iterable[Any]:
        if self.drawn is not None:
            return self.drawn
        if self.order_rng is not None and sized_len(self.sampler) is not None:
            with under_rng(self.order_rng):
                return list(self.sampler)
        if not self._orders_itself:
            size = len(self.sampler)  # type: ignore[arg-type]
            if not self.shuffle:
                return range(size)
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            return torch.randperm(size, generator=generator).tolist()
        if sized_len(self.sampler) is None:
            return self.sampler  # perhaps without end
        with isolate_rng(include_cuda=False):
            seed_generators(derive_seed(self.seed, self.epoch))
            return list(self.sampler)


class DistributedSamplerWrapper(DistributedSampler[Any]):
    """torch's `DistributedSampler` over the order of `sampler` rather than over a dataset.

    The order is drawn anew each epoch, under random numbers that depend on seed and epoch only: all processes agree on
    it. A sampler without a length is dealt out as it comes, and never shuffled.

    Args:
        sampler: Gives the order of all processes together; what it gives may be indices or batches of indices.
        args, kwargs: As for `DistributedSampler`, without the dataset: `num_replicas`, `rank`, `shuffle`, `seed`,
            `drop_last`.
    """

    def __init__(self, sampler: Iterable[Any], *args: Any, **kwargs: Any) -> None:
        stand_in: Any = range(sized_len(sampler) or 0)
        super().__init__(stand_in, *args, **kwargs)
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        return deal(self._order(), self.rank, self.num_replicas, drop_last=self.drop_last)

    def __len__(self) -> int:
        num_units = len(self.sampler)  # type: ignore[arg-type]  # if it has no length, this says so
        return share_length(num_units, self.rank, self.num_replicas, drop_last=self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration, for the wrapped sampler too."""
        super().set_epoch(epoch)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def _order(self) -> Iterable[Any]:
        if sized_len(self.sampler) is None:
            return self.sampler
        with isolate_rng(include_cuda=False):
            seed_generators(derive_seed(self.seed, self.epoch))
            order = list(self.sampler)
        if not self.shuffle:
            return order
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return [order[place] for place in torch.randperm(len(order), generator=generator).tolist()]


# Counted from the front; a range of more would not be in C.
_TICKS = range(1, sys.maxsize)


@dataclass(slots=True)
class IndexPass:
    """One pass over the batches of indices.

    Args:
        skip: Batches at the beginning that are not handed out.
        ahead: Batches that had been handed out when the position was saved: more than were used, if workers prefetch.
        rng: The random state in which the sampler begins; None takes what is there, and remembers it.
        on_replaying: Called before the sampler is asked for the first batch.
        on_replayed: Called when the sampler has come to `ahead` again.
        batches: What to read in this pass, if not the usual batches.
        seed_of: With workers: the seed for the batch of that number, which travels to the worker with its indices.
        hear: Gets each batch of indices when it is handed out.
        began: Once the sampler has begun: the random state before.
        ticks: As many items as there can be batches; each batch takes one.
        is_exhausted: Has the sampler ended?
        begins_behind: Does it begin behind what is skipped?
    """

    skip: int = 0
    ahead: int = 0
    rng: dict[str, Any] | None = None
    on_replaying: Callable[[], None] | None = None
    on_replayed: Callable[[], None] | None = None
    batches: Iterable[Any] | None = None
    seed_of: Callable[[int], int] | None = None
    hear: Callable[[Any], Any] | None = None
    began: GlobalGenerators | None = None
    ticks: Iterator[int] = field(default_factory=lambda: iter(_TICKS))
    is_exhausted: bool = False
    begins_behind: bool = False

    @property
    def drawn(self) -> int:
        """Batches handed out, with those skipped."""
        return self.skip + len(_TICKS) - length_hint(self.ticks)

    def sampler_rng(self) -> dict[str, Any] | None:
        """The random state in which the sampler began, as plain data."""
        return self.began.plain() if self.rng is None and self.began is not None else self.rng


class PositionedBatches(Sampler[Any]):
    """Batches of indices that know how many were handed out, and can begin behind the first.

    Args:
        batches: The batch sampler; or the sampler, where the loader does not batch.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.current = IndexPass()
        self.upcoming = IndexPass()

    def __iter__(self) -> Iterator[Any]:
        # torch begins twice where there are workers, and reads the second one.
        self.current = this = replace(self.upcoming, ticks=iter(_TICKS))
        # Here, not at the first batch: some samplers draw in __iter__, and a plain loop draws in this order.
        batches = self.batches if this.batches is None else this.batches
        rest = _behind(batches, this.skip) if this.skip else None
        this.begins_behind = rest is not None
        batches = batches if rest is None else rest
        # A share is the exception: its generators may have to be brought to where they stood before.
        inner = _when_asked(batches) if isinstance(batches, ShardedSampler) else iter(batches)
        if this.hear is not None:
            return self._walk_heard(inner, this, this.hear)
        return self._walk(inner, this) if this.seed_of is None else self._walk_seeded(inner, this, this.seed_of)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "batches":  # not there yet while this is being copied
            raise AttributeError(name)
        return getattr(self.batches, name)

    def _walk(self, inner: Iterator[Any], this: IndexPass) -> Iterator[Any]:
        # Counts in C: `compress` takes one tick for each batch.
        yield from compress(_begin(inner, this), this.ticks)
        this.is_exhausted = True

    def _walk_heard(self, inner: Iterator[Any], this: IndexPass, hear: Callable[[Any], Any]) -> Iterator[Any]:
        walk = self._walk(inner, this) if this.seed_of is None else self._walk_seeded(inner, this, this.seed_of)
        for indices in walk:
            hear(indices.indices if isinstance(indices, SeededIndices) else indices)
            yield indices

    def _walk_seeded(self, inner: Iterator[Any], this: IndexPass, seed_of: Callable[[int], int]) -> Iterator[Any]:
        for indices in compress(_begin(inner, this), this.ticks):
            yield SeededIndices(indices, seed_of(this.drawn - 1))
        this.is_exhausted = True


def _when_asked(units: Iterable[Any]) -> Iterator[Any]:
    yield from units


def _begin(inner: Iterator[Any], this: IndexPass) -> Iterator[Any]:
    if this.rng is None:
        # Not at `iter`: most samplers draw when they are first asked, and others may have drawn in between.
        this.began = GlobalGenerators()
    if this.on_replaying is not None:
        this.on_replaying()
    if this.begins_behind:
        if this.on_replayed is not None:
            inner = replay(inner, this.rng, skip=0, ahead=1)  # with the first batch, the order is drawn
    elif this.rng is not None or this.skip:
        inner = replay(inner, this.rng, skip=this.skip, ahead=this.ahead)
    if this.on_replayed is not None:
        this.on_replayed()
    return inner


def _behind(batches: Iterable[Any], skip: int) -> Iterable[Any] | None:
    """What follows the first `skip` batches, where an order is known without drawing them; else None."""
    if type(batches) is BatchSampler:
        rest = _behind(batches.sampler, skip * batches.batch_size)
        return None if rest is None else BatchSampler(rest, batches.batch_size, batches.drop_last)
    if type(batches) is SequentialSampler:
        return range(len(batches))[skip:]
    return batches.behind(skip) if type(batches) is ShardedSampler else None


def replay(iterator: Iterator[Any], rng: dict[str, Any] | None, *, skip: int, ahead: int) -> Iterator[Any]:
    """`iterator` without its first `skip` items, after it was brought to item `ahead` under the random state `rng`.

    Whoever draws lazily from a generator so comes to where it stood. With `rng`, the global random state is then as
    before; without, it has moved on as in any loop.
    """
    with under_rng(rng):
        deque(islice(iterator, skip), maxlen=0)
        known = list(islice(iterator, max(ahead - skip, 0)))
    return chain(known, iterator) if known else iterator


@contextmanager
def under_rng(rng: dict[str, Any] | None) -> Iterator[None]:
    """Random numbers inside go on from the saved state `rng` and leave no trace outside; None changes nothing."""
    if rng is None:
        yield
        return
    with isolate_rng(include_cuda=False):
        restore_rng_state(rng)
        yield


def is_plain_shuffle(sampler: object) -> bool:
    """Is it the sampler that `shuffle=True` makes, drawing from the global generator?"""
    return (
        type(sampler) is RandomSampler
        and sampler.generator is None
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
