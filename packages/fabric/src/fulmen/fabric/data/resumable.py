"""The user's loader, viewed: sharded, seeded per batch, resumable; never built anew.

torch's DataLoader is copied (the object, not what it holds), and the copy gets a batch sampler that shards and knows
its position: going on from batch n costs n batches of indices, and no sample is loaded twice. What cannot be entered in
the middle (iterable datasets, other iterables, loaders with their own `__iter__`) is replayed from the epoch's start.
A loader, dataset or sampler with `state_dict` and `load_state_dict` keeps its own state.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from fulmen.fabric.data.generators import GlobalGenerators, generator_state
from fulmen.fabric.data.length import is_map_loader, sized_len
from fulmen.fabric.data.parts import (
    generators_of,
    is_sharded,
    iterates_as_torch,
    keeps_state,
    loader_parts,
    restore_generators,
    restore_stateful,
    stateful_parts,
)
from fulmen.fabric.data.position import Position, check_rank
from fulmen.fabric.data.samplers import IndexPass, PositionedBatches, ShardedSampler, replay, under_rng
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.seeding import derive_seed


@dataclass(slots=True)
class _Pass:
    """One iteration over the loader: how it began, and how far it is."""

    epoch: int
    start: int
    is_dealt: bool
    order_rng: dict[str, Any] | None
    reuses_workers: bool
    rng: dict[str, Any] | GlobalGenerators
    generators: list[Any]
    stateful: dict[str, Any]
    given: int = 0
    is_finished: bool = False
    # The last states of a dataset or loader that keeps its own, by the number of batches given.
    snapshots: deque[tuple[int, Any]] = field(default_factory=lambda: deque(maxlen=2))


class ResumableLoader:
    """Any iterable of batches, with a place in it that can be saved and gone back to.

    In one process without workers, a loop over it reads the same batches as a loop over `loader`, and leaves the same
    random state. Iterating twice without `set_epoch` between counts an epoch on.

    One thing cannot be gone back to: the order of a sampler that draws from a global generator batch by batch, while
    the training draws from it too. Give such a sampler a generator of its own.

    Args:
        loader: A DataLoader, or any other iterable; it is not changed.
        rank, world_size: This process, of how many. With more than one, a DataLoader over a map-style dataset is
            sharded, unless its sampler is a `DistributedSampler` already.
        shuffle: With several processes: None shuffles if the loader does; True and False override plain samplers.
        drop_last: With several processes: leave out samples that do not go round, instead of giving some twice.
        repeats: With several processes: False gives no sample twice, and some processes one more than others.
        seed: The seed of the run, the same on all processes.
        seed_workers: With workers: seed them per batch, from seed, epoch and batch number, so that what they draw does
            not depend on `num_workers` and is the same after a resume.

    Raises:
        ArgumentTypeError: If `loader` cannot be iterated.
        ConfigurationError: If there is no process `rank` among `world_size`.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool | None = None,
        drop_last: bool = False,
        repeats: bool = True,
        seed: int = 0,
        seed_workers: bool = True,
    ) -> None:
        check_rank(rank, world_size)
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise ArgumentTypeError(
                f"{loader!r} is no loader: a {type(loader).__name__} cannot be iterated. Batches are read with a for"
                " loop. Pass a torch.utils.data.DataLoader, or any other iterable of batches."
            )
        self.loader = loader
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self._epoch = 0
        self._is_epoch_set = False
        self._pass: _Pass | None = None
        self._saved: dict[str, Any] | None = None
        self._skip: int | None = None
        self._sharded: ShardedSampler | None = None
        self._dealt: Iterable[Any] | None = None
        self._seeds_batches = False
        self._has_begun = False
        self._batches: PositionedBatches | None = None
        self._viewed: Any = loader
        if is_map_loader(loader):
            self._view(loader, shuffle, drop_last, repeats, seed_workers)
        # Where each batch of indices drawn becomes one batch given, to go on is a matter of indices.
        self._enters_by_index = self._batches is not None and iterates_as_torch(loader)
        self._num_workers = int(getattr(loader, "num_workers", 0) or 0)

    def _view(
        self, loader: DataLoader[Any], shuffle: bool | None, drop_last: bool, repeats: bool, seed_workers: bool
    ) -> None:
        was_sharded = is_sharded(loader)
        deals = self.world_size > 1 and not was_sharded
        has_own_state = keeps_state(loader)
        if has_own_state and not deals:
            return
        batches: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        viewed = copy.copy(loader)
        attributes = viewed.__dict__
        # Workers that the original keeps alive read from its own sampler.
        attributes["_iterator"] = None
        if not was_sharded:
            # A lone process needs it when it goes on for several.
            deals_samples = loader.batch_sampler is None or type(batches) is BatchSampler
            self._sharded = ShardedSampler(
                loader.sampler if deals_samples else batches,
                rank=self.rank,
                world_size=self.world_size,
                shuffle=shuffle if self.world_size > 1 else None,
                seed=self.seed,
                drop_last=drop_last,
                repeats=repeats,
            )
            self._dealt = self._sharded
            if deals_samples and loader.batch_sampler is not None:
                self._dealt = BatchSampler(self._sharded, batches.batch_size, batches.drop_last)
        if deals:
            assert self._dealt is not None
            batches = self._dealt
            if deals_samples:
                attributes["sampler"] = self._sharded
        if not has_own_state:
            self._seeds_batches = seed_workers and loader.num_workers > 0
            batches = self._batches = PositionedBatches(batches)
        attributes["sampler" if loader.batch_sampler is None else "batch_sampler"] = batches
        self._viewed = viewed

    def __len__(self) -> int:
        return len(self._viewed)

    def __getattr__(self, name: str) -> Any:
        if name == "_viewed":  # not there yet while this is being copied
            raise AttributeError(name)
        return getattr(self._viewed, name)

    def __iter__(self) -> Iterator[Any]:
        saved, skip = self._take_resume()
        this = self._begin_pass(saved)
        if self._enters_by_index:
            return self._enter_by_index(this, saved, skip)
        return self._enter_by_replay(this, saved, skip)

    # Where to begin

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration; told to the user's sampler, batch sampler, dataset or loader too.

        An epoch other than that of a loaded state gives that state's place up: the iteration begins anew.
        """
        if self._saved is not None and self._saved["epoch"] != epoch:
            self._saved = self._skip = None
        self._epoch = epoch
        self._is_epoch_set = True
        self._tell_epoch()

    def begin_epoch(self, epoch: int) -> None:
        """As `set_epoch`; the place of a loaded state is given up, whatever its epoch."""
        self._saved = self._skip = None
        self.set_epoch(epoch)

    def skip_to(self, batch: int) -> None:
        """Let the next iteration begin behind `batch` batches.

        By index, nothing is loaded for it; else the batches are read and dropped. After `load_state_dict`, they are
        those of the saved iteration, in its order; without, those that would come now.

        Raises:
            ConfigurationError: If `batch` is negative.
        """
        if batch < 0:
            raise ConfigurationError(
                f"skip_to({batch}) goes back before the first batch. The argument is how many batches of the epoch are"
                " done. Pass 0 or more."
            )
        self._skip = batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the running iteration, and what makes its order; `torch.load(weights_only=True)` takes it.

        Taken between two batches. States of the user's own objects are as those objects give them.
        """
        this = self._pass
        if this is None:
            place = {"epoch": self._epoch, "is_begun": False} if self._saved is None else self._saved
            return {**place, **self._state_of_parts()}
        index_pass = self._index_pass
        given = self._num_given(this)
        state = {
            "epoch": this.epoch,
            "is_begun": True,
            "is_finished": this.is_finished or self._is_read_to_end(this, given),
            "start": this.start,
            "is_dealt": this.is_dealt,
            "order_rng": this.order_rng,
            "reuses_workers": this.reuses_workers,
            "batch": given,
            "ahead": given if index_pass is None else index_pass.drawn,
            "world_size": self.world_size,
            "batch_size": self._units_per_batch,
            "rng": this.rng.plain() if isinstance(this.rng, GlobalGenerators) else this.rng,
            "sampler_rng": None if index_pass is None else index_pass.sampler_rng(),
            "generators": this.generators,
            "stateful": this.stateful,
            **self._state_of_parts(),
            "snapshots": [[number, snapshot] for number, snapshot in this.snapshots],
        }
        if keeps_state(self._viewed):
            state["snapshots"] = [[given, self._viewed.state_dict()]]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        If that iteration was read to its end, the next epoch follows, unless `set_epoch` or `skip_to` say otherwise.
        """
        self._pass = None
        self._skip = None
        self._saved = state if state["is_begun"] else None
        self._has_begun = state["is_begun"]
        self._epoch = state["epoch"]
        self._is_epoch_set = not state["is_begun"]
        restore_generators(generators_of(self.loader), state["generators_now"])
        restore_stateful(self._stateful(), state["stateful_now"])
        self._tell_epoch()

    # One iteration

    def _take_resume(self) -> tuple[dict[str, Any] | None, int]:
        saved, skip = self._saved, self._skip
        self._saved = self._skip = None
        if saved is not None and saved["is_finished"] and skip is None and not self._is_epoch_set:
            saved = None
            self._epoch += 1
            self._is_epoch_set = True
            self._tell_epoch()
        if skip is None:
            skip = 0 if saved is None else saved["batch"]
        return saved, skip

    def _begin_pass(self, saved: dict[str, Any] | None) -> _Pass:
        if saved is not None:
            restore_generators(generators_of(self.loader), saved["generators"])
            # The dataset stays where it was: samples that are skipped are not loaded again.
            restore_stateful(
                self._stateful(), {name: state for name, state in saved["stateful"].items() if name != "dataset"}
            )
        elif not self._is_epoch_set:
            self._count_epoch_on()
        self._is_epoch_set = False
        keeps_workers = self._num_workers > 0 and bool(getattr(self._viewed, "persistent_workers", False))
        self._pass = this = _Pass(
            epoch=self._epoch,
            start=0 if saved is None else saved["start"],
            is_dealt=self.world_size > 1,
            order_rng=None,
            reuses_workers=keeps_workers and (self._has_begun if saved is None else saved["reuses_workers"]),
            rng=GlobalGenerators() if saved is None else saved["rng"],
            generators=[generator_state(generator) for generator in generators_of(self.loader)],
            stateful={name: part.state_dict() for name, part in self._stateful().items()},
        )
        self._has_begun = True
        return this

    def _enter_by_index(self, this: _Pass, saved: dict[str, Any] | None, skip: int) -> Iterator[Any]:
        assert self._batches is not None
        upcoming = IndexPass(skip=skip) if saved is None else self._resumed(this, saved, skip)
        if self._sharded is not None:
            self._sharded.start = this.start
            self._sharded.order_rng = this.order_rng
            upcoming.batches = self._dealt if this.is_dealt else None
        if self._seeds_batches:
            upcoming.seed_of = partial(_seed_of_batch, self.seed, this.epoch, this.start, self.world_size, self.rank)
        this.given = upcoming.skip
        self._batches.upcoming = upcoming
        with under_rng(None if saved is None else saved["rng"]):
            batches = self._iterate(this)
        # Without workers, a batch is given when its indices are drawn: there is nothing to count, and nothing to pay.
        return batches if self._num_workers == 0 else self._counted(batches, this)

    def _resumed(self, this: _Pass, saved: dict[str, Any], skip: int) -> IndexPass:
        before = Position(saved["start"], skip, saved["world_size"], saved["batch_size"])
        here = before if self._sharded is None else before.resumed_on(self.world_size, self._units_per_batch)
        is_same_deal = here is before
        this.start = here.start
        this.is_dealt = self._sharded is not None and (saved["is_dealt"] or not is_same_deal)
        # Several processes go on in the order that a lone one drew from its own random state.
        this.order_rng = saved["order_rng"] if is_same_deal or saved["is_dealt"] else saved["sampler_rng"]
        return IndexPass(
            skip=here.batch,
            ahead=saved["ahead"] if is_same_deal else 0,
            rng=saved["sampler_rng"],
            # Without a reference to the view: it would keep workers alive until the garbage collector runs.
            on_replayed=partial(restore_generators, generators_of(self.loader), saved["generators_now"]),
        )

    def _iterate(self, this: _Pass) -> Iterator[Any]:
        """A new iterator, which draws a seed for its workers unless the uninterrupted run kept its workers."""
        starts_workers_again = this.reuses_workers and self._viewed._iterator is None
        if not starts_workers_again:
            return iter(self._viewed)
        attributes = self._viewed.__dict__
        generator = attributes["generator"]
        attributes["generator"] = torch.Generator()
        try:
            return iter(self._viewed)
        finally:
            attributes["generator"] = generator

    def _enter_by_replay(self, this: _Pass, saved: dict[str, Any] | None, skip: int) -> Iterator[Any]:
        if self._batches is not None:
            self._batches.upcoming = IndexPass()
        given = 0
        keeper = self._snapshot_keeper()
        if saved is not None and keeper is not None:
            for number, snapshot in saved["snapshots"]:
                if given <= number <= skip:
                    given = number
                    keeper.load_state_dict(snapshot)
        rng = None if saved is None else saved["rng"]
        with under_rng(rng):
            batches = self._iterate(this)
            # A keeper's states are taken after each batch: it must not run ahead of what was given.
            ahead = 0 if saved is None or keeper is not None else saved["batch"]
            batches = replay(batches, None, skip=skip - given, ahead=ahead)
        if saved is not None:
            restore_generators(generators_of(self.loader), saved["generators_now"])
        this.given = skip
        return self._counted(batches, this)

    def _counted(self, batches: Iterator[Any], this: _Pass) -> Iterator[Any]:
        keeper = self._snapshot_keeper()
        if keeper is None or keeper is self._viewed:
            for batch in batches:
                this.given += 1
                yield batch
        else:
            for batch in batches:
                this.given += 1
                # Two are kept: whoever looks one batch ahead saves the place before it.
                this.snapshots.append((this.given, keeper.state_dict()))
                yield batch
        this.is_finished = True

    # What there is

    @property
    def _index_pass(self) -> IndexPass | None:
        return self._batches.current if self._batches is not None and self._enters_by_index else None

    def _num_given(self, this: _Pass) -> int:
        if self._num_workers == 0 and self._index_pass is not None:
            return self._index_pass.drawn
        return this.given

    def _is_read_to_end(self, this: _Pass, given: int) -> bool:
        index_pass = self._index_pass
        if index_pass is None:
            return False
        # Who knows the length does not ask for one batch more.
        length = sized_len(self._viewed) if this.start == 0 else None
        return given >= length if length is not None else index_pass.is_exhausted and given >= index_pass.drawn

    @property
    def _units_per_batch(self) -> int:
        # Own batch samplers, and loaders that do not batch, are dealt piece by piece.
        return self._dealt.batch_size if isinstance(self._dealt, BatchSampler) else 1

    def _stateful(self) -> dict[str, Any]:
        """The samplers and the map-style dataset that keep a state."""
        return stateful_parts(self.loader) if self._enters_by_index else {}

    def _state_of_parts(self) -> dict[str, Any]:
        return {
            "generators_now": [generator_state(generator) for generator in generators_of(self.loader)],
            "stateful_now": {name: part.state_dict() for name, part in self._stateful().items()},
        }

    def _snapshot_keeper(self) -> Any:
        """The loader or dataset whose own state says where it is, if there is one."""
        if keeps_state(self._viewed):
            return self._viewed
        if self._batches is None and self._num_workers == 0:
            dataset = getattr(self._viewed, "dataset", None)
            return dataset if keeps_state(dataset) else None
        return None

    def _tell_epoch(self) -> None:
        for listener in self._epoch_listeners():
            listener.set_epoch(self._epoch)

    def _epoch_listeners(self) -> list[Any]:
        parts = [part for part in loader_parts(self.loader).values() if hasattr(part, "set_epoch")]
        if self._sharded is None:
            return parts
        return [self._sharded, *(part for part in parts if part is not self._sharded.sampler)]

    def _count_epoch_on(self) -> None:
        # A loop that calls `loader.sampler.set_epoch` itself is the one that counts.
        told = {getattr(listener, "epoch", self._epoch) for listener in self._epoch_listeners()} - {self._epoch}
        if len(told) == 1:
            self._epoch = told.pop()
        elif self._pass is not None:
            self._epoch += 1
        self._tell_epoch()


def _seed_of_batch(seed: int, epoch: int, start: int, world_size: int, rank: int, batch: int) -> int:
    return derive_seed(seed, epoch, start, batch * world_size + rank)
