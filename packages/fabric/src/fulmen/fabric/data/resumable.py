"""The user's loader, viewed: sharded, seeded per batch, resumable; never built anew.

torch's DataLoader is copied (the object, not what it holds), and the copy gets a batch sampler that shards and knows
its position: going on from batch n costs n batches of indices, and no sample is loaded twice. What cannot be entered in
the middle (iterable datasets, other iterables, loaders with their own `__iter__`) is replayed from the epoch's start.
A loader, dataset or sampler with `state_dict` and `load_state_dict` keeps its own state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from fulmen.fabric.data.generators import GlobalGenerators, generator_state
from fulmen.fabric.data.length import is_map_loader, sized_len
from fulmen.fabric.data.one_pass import Pass, saved_place, usable_snapshots
from fulmen.fabric.data.parts import (
    generators_of,
    iterates_as_torch,
    keeps_state,
    restore_generators,
    restore_stateful,
    stateful_parts,
)
from fulmen.fabric.data.position import Position, check_rank
from fulmen.fabric.data.samplers import IndexPass, replay, under_rng
from fulmen.fabric.data.viewed import LoaderView, not_dealt_anew, replayed
from fulmen.fabric.data.worker_seeds import seed_of_batch
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.rank_zero import warn_once

_END = object()


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
        self._pass: Pass | None = None
        self._saved: dict[str, Any] | None = None
        self._skip: int | None = None
        self._hear: Callable[[Any], Any] | None = None
        self._has_begun = False
        self._is_looked_at = False
        how: dict[str, Any] = {"shuffle": shuffle, "drop_last": drop_last, "repeats": repeats, "seed": seed}
        view = self._view = LoaderView(loader, rank=rank, world_size=world_size, seed_workers=seed_workers, **how)
        self._viewed, self._sharded, self._batches = view.loader, view.sharded, view.batches
        # Where each batch of indices drawn becomes one batch given, to go on is a matter of indices.
        self._enters_by_index = self._batches is not None and iterates_as_torch(loader)
        self._num_workers = int(getattr(loader, "num_workers", 0) or 0)

    def __len__(self) -> int:
        length = len(self._viewed)
        place = self._place()
        # After the first deal of an epoch, on another number of processes, only what is left is dealt.
        return length if place.start == 0 else self._view.length(place, self.rank)

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
        self._view.tell_epoch(self._epoch)

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

    def expect_look_ahead(self) -> None:
        """Somebody asks for a batch before the one before is done with: from now on, what a batch is made from is kept.

        So the newest batch can be made again as it was, with the same random numbers.
        """
        self._is_looked_at = True

    def hear_indices(self, hear: Callable[[Any], Any] | None) -> bool:
        """From the next iteration on, `hear` gets the indices of each batch's samples; False where they are unknown."""
        self._hear = hear
        return self._enters_by_index and bool(getattr(self.loader, "in_order", True))

    def state_dict(self) -> dict[str, Any]:
        """The place in the running iteration, and what makes its order; `torch.load(weights_only=True)` takes it.

        Taken between two batches. States of the user's own objects are as those objects give them.
        """
        this = self._pass
        if this is None:
            place = {"epoch": self._epoch, "seed": self.seed, "is_begun": False} if self._saved is None else self._saved
            return {**place, **self._state_of_parts()}
        index_pass = self._index_pass
        given = self._num_given(this)
        state = {
            **this.state_dict(),
            "is_begun": True,
            "seed": self.seed,
            "is_finished": this.is_finished or self._is_read_to_end(this, given),
            "batch": given,
            "ahead": given if index_pass is None else index_pass.drawn,
            "sampler_rng": None if index_pass is None else index_pass.sampler_rng(),
            **self._state_of_parts(),
        }
        if keeps_state(self._viewed):
            earlier = [list(snapshot) for snapshot in this.snapshots if snapshot[0] < given]
            state["snapshots"] = [*earlier, list(this.snapshot(given, self._viewed))]
        return state

    def resting_state(self) -> dict[str, Any]:
        """As `state_dict`, as if the iteration under way were over: who loads it begins the one that would come next.

        Taken between two iterations, or before the first batch of one.
        """
        place = {"epoch": self._epoch, "seed": self.seed, "is_begun": False, "has_begun": self._has_begun}
        return {**place, **self._state_of_parts()}

    @property
    def saved_batch(self) -> int | None:
        """How many batches the iteration had given that a loaded state is of; None once it has gone on."""
        return None if self._saved is None else int(self._saved["batch"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        If that iteration was read to its end, the next epoch follows, unless `set_epoch` or `skip_to` say otherwise.
        """
        self._pass = None
        self._skip = None
        self._saved = state if state["is_begun"] else None
        self._has_begun = state.get("has_begun", state["is_begun"])
        # The run goes on with the seed that it began with, whatever the program has seeded now.
        self.seed = state.get("seed", self.seed)
        if self._sharded is not None:
            self._sharded.seed = self.seed
        self._epoch = state["epoch"]
        self._is_epoch_set = not self._has_begun
        restore_generators(generators_of(self.loader), state["generators_now"])
        restore_stateful(self._stateful(), state["stateful_now"])
        self._view.tell_epoch(self._epoch)

    # One iteration

    def _take_resume(self) -> tuple[dict[str, Any] | None, int]:
        saved, skip = self._saved, self._skip
        self._saved = self._skip = None
        if saved is not None and saved["is_finished"] and skip is None and not self._is_epoch_set:
            saved = None
            self._epoch += 1
            self._is_epoch_set = True
            self._view.tell_epoch(self._epoch)
        if skip is None:
            skip = 0 if saved is None else saved["batch"]
        return saved, skip

    def _begin_pass(self, saved: dict[str, Any] | None) -> Pass:
        if self._pass is not None:
            self._pass.drop_unread()
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
        self._pass = this = Pass(
            epoch=self._epoch,
            place=Position(0, 0, self.world_size, self._view.units_per_batch),
            is_dealt=self.world_size > 1,
            order_rng=None,
            reuses_workers=keeps_workers and (self._has_begun if saved is None else saved["reuses_workers"]),
            # Iterable datasets split by the number of workers: an epoch ends with as many as it began.
            num_workers=self._num_workers if saved is None or self._enters_by_index else saved["num_workers"],
            rng=GlobalGenerators() if saved is None else saved["rng"],
            generators=[generator_state(generator) for generator in generators_of(self.loader)],
            stateful={name: part.state_dict() for name, part in self._stateful().items()},
        )
        self._has_begun = True
        return this

    def _enter_by_index(self, this: Pass, saved: dict[str, Any] | None, skip: int) -> Iterator[Any]:
        assert self._batches is not None
        upcoming = IndexPass(skip=skip) if saved is None else self._resumed(this, saved, skip)
        if self._sharded is not None:
            self._sharded.start = this.place.start
            self._sharded.order_rng = this.order_rng
            upcoming.batches = self._view.dealt if this.is_dealt else None
        if self._view.seeds_batches:
            start, world_size = this.place.start, self.world_size
            upcoming.seed_of = partial(seed_of_batch, self.seed, this.epoch, start, world_size, self.rank)
        upcoming.hear = self._hear
        if self._is_looked_at and self._num_workers == 0:
            # Between the indices and the samples: the sampler draws again what it drew.
            upcoming.hear = partial(this.note_and_tell, generators_of(self.loader), self._hear)
        this.given = this.place.before + upcoming.skip
        self._batches.upcoming = upcoming
        with under_rng(None if saved is None else saved["rng"]):
            batches = self._view.iterate(this, self.seed)
        if saved is not None:
            self._put_off_replay(saved)
        # Without workers, a batch is given when its indices are drawn: there is nothing to count, and nothing to pay.
        counts = self._num_workers > 0 or self._is_looked_at
        return self._counted(batches, this, self._remade(this.given, saved)) if counts else batches

    def _resumed(self, this: Pass, saved: dict[str, Any], skip: int) -> IndexPass:
        before = saved_place(saved, skip)
        here = before if self._sharded is None else before.resumed_on(self.world_size, self._view.units_per_batch)
        is_same_deal = here is before
        if self._sharded is None and saved["world_size"] != self.world_size:
            warn_once(not_dealt_anew(saved["world_size"], self.world_size, by_index=True))
        this.place = here
        this.is_dealt = self._sharded is not None and (saved["is_dealt"] or not is_same_deal)
        # Several processes go on in the order that a lone one drew from its own random state.
        this.order_rng = saved["order_rng"] if is_same_deal or saved["is_dealt"] else saved["sampler_rng"]
        this.given = here.number
        remade = self._remade(this.given, saved)
        # Without a reference to the view: it would keep workers alive until the garbage collector runs.
        restore = partial(
            restore_generators,
            generators_of(self.loader),
            saved["generators_now"] if remade is None else remade["made_from"][1],
        )
        # A new deal draws its order with the first batch; or, without a length, batch by batch from where it stands.
        draws_on = not is_same_deal and self._sharded is not None and sized_len(self._sharded.sampler) is None
        return IndexPass(
            skip=here.batch,
            ahead=saved["ahead"] if is_same_deal else 1,
            rng=saved["sampler_rng"],
            on_replayed=None if draws_on else restore,
        )

    def _put_off_replay(self, saved: dict[str, Any]) -> None:
        """Until the first batch is asked for, which may be never, generators stand where they stood."""
        assert self._batches is not None
        generators = generators_of(self.loader)
        begun = [generator_state(generator) for generator in generators]
        self._batches.current.on_replaying = partial(restore_generators, generators, begun)
        restore_generators(generators, saved["generators_now"])

    def _remade(self, given: int, saved: dict[str, Any] | None) -> dict[str, Any] | None:
        """`saved`, if the batch that comes first had been made before the state was saved, by looking ahead."""
        if saved is None or saved["made_from"] is None:
            return None
        ahead = saved["batch"] - given
        return saved if ahead == 1 or (ahead == 0 and saved["is_finished"]) else None

    def _enter_by_replay(self, this: Pass, saved: dict[str, Any] | None, skip: int) -> Iterator[Any]:
        if self._batches is not None:
            self._batches.upcoming = IndexPass()
        given = 0
        keeper = self._snapshot_keeper()
        if saved is not None and keeper is not None:
            for snapshot in usable_snapshots(saved, skip, ends_itself=keeper is self._viewed):
                given = this.restore(keeper, snapshot)
        if saved is not None and keeper is self._viewed and saved["is_finished"] and given == saved["batch"]:
            this.is_finished = True
            with under_rng(saved["rng"]):
                self._view.iterate(this, self.seed)  # it takes the state now, and not when the next epoch begins
            return iter(())  # a loader that has ended begins anew when it is asked again
        if saved is not None and given < skip - (keeper is self._viewed):
            warn_once(replayed(self.loader))
        if saved is not None and skip and saved["world_size"] != self.world_size:
            keeps = is_map_loader(self.loader) and keeper is self._viewed
            warn_once(not_dealt_anew(saved["world_size"], self.world_size, by_index=False, keeps_state=keeps))
        if self._sharded is not None and keeper is self._viewed:
            self._sharded.draw()  # the loader may ask twice, and late: when generators stand elsewhere
        remade = self._remade(skip, saved)
        rng = None if saved is None else saved["rng"]
        with under_rng(rng):
            batches = self._view.iterate(this, self.seed)
            # A keeper's states are taken after each batch: it must not run ahead of what was given.
            ahead = 0 if saved is None or keeper is not None or remade is not None else saved["batch"]
            batches = replay(batches, None, skip=skip - given, ahead=ahead)
        this.given = skip
        if saved is not None:
            restore_generators(generators_of(self.loader), saved["generators_now"])
        if remade is not None:
            restore_generators(generators_of(self.loader), remade["made_from"][1])
        this.unread = None if saved is None or keeper is None else batches
        return self._counted(batches, this, remade)

    def _counted(self, batches: Iterator[Any], this: Pass, remade: dict[str, Any] | None = None) -> Iterator[Any]:
        """The same batches, with a note of each; those of `remade` begin with one that had been made before."""
        keeper = self._snapshot_keeper()
        # A loader's own state costs more, and is asked for when it is wanted: unless it is ahead then.
        keeps = keeper is not None and (keeper is not self._viewed or self._is_looked_at)
        notes = self._is_looked_at and this.num_workers == 0 and not self._enters_by_index
        generators = generators_of(self.loader) if notes else None
        this.unread = None
        if remade is not None:
            with under_rng(remade["made_from"][0]):
                batch = next(batches, _END)
            restore_generators(generators_of(self.loader), remade["generators_now"])
            this.made_from = None
        else:
            if generators is not None:
                this.note(generators)
            batch = next(batches, _END)
        while batch is not _END:
            this.given += 1
            if keeps:
                # Two are kept: whoever looks one batch ahead saves the place before it.
                this.snapshots.append(this.snapshot(this.given, keeper))
            yield batch
            if generators is not None:
                this.note(generators)
            batch = next(batches, _END)
        this.is_finished = True

    # What there is

    @property
    def _index_pass(self) -> IndexPass | None:
        return self._batches.current if self._batches is not None and self._enters_by_index else None

    def _num_given(self, this: Pass) -> int:
        if self._num_workers == 0 and self._index_pass is not None and not self._is_looked_at:
            return this.place.before + self._index_pass.drawn
        return this.given

    def _is_read_to_end(self, this: Pass, given: int) -> bool:
        index_pass = self._index_pass
        if index_pass is None:
            return False
        # Who knows the length does not ask for one batch more.
        length = sized_len(self)
        drawn = this.place.before + index_pass.drawn
        return given >= length if length is not None else index_pass.is_exhausted and given >= drawn

    def _place(self) -> Position:
        """Where the iteration that is under way, or the saved one, was dealt anew."""
        whole = Position(0, 0, self.world_size, self._view.units_per_batch)
        if self._saved is not None:
            saved = saved_place(self._saved, self._saved["batch"])
            return whole if self._sharded is None else saved.resumed_on(self.world_size, self._view.units_per_batch)
        return whole if self._pass is None or self._is_epoch_set else self._pass.place

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

    def _count_epoch_on(self) -> None:
        # A loop that calls `loader.sampler.set_epoch` itself is the one that counts.
        told = self._view.told_epoch(self._epoch)
        if told is not None:
            self._epoch = told
        elif self._has_begun:
            self._epoch += 1
        self._view.tell_epoch(self._epoch)
